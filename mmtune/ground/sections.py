"""The strict base of every recipe section."""

from pydantic import BaseModel, ConfigDict


class StrictSection(BaseModel):
    """A frozen recipe section: unknown keys and implicit conversions are errors.

    Integers are accepted where a float is asked for; nothing else is converted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)
