"""What every table of pairs can say: a caption, or a question with its answers, or whether a caption is true."""

from pydantic import Field, field_validator, model_validator

from mmtune.sources import SourceSection
from mmtune.sources._answers import AnswerColumns
from mmtune.sources._captions import CaptionRule, parse_caption

CAPTION = "caption"


class TableSection(SourceSection):
    """A table with a row per image and caption; with ``question`` or ``label`` every row is a sample of its own."""

    caption: str = Field(
        CAPTION,
        description="column with the caption or with a list of captions, or a template over columns: "
        "'{title} by {brand}'",
    )
    question: str | None = Field(
        None,
        description="column with a question about the image; every row is then a sample of its own, and no caption is "
        "read; null: rows hold captions",
    )
    answers: str | None = Field(
        None,
        description="column with the question's answer, or with a list of what several people answered (texts, or "
        "{answer: text} as VQAv2 has them)",
    )
    label: str | None = Field(
        None,
        description="column that says whether the row's caption is true of its image: true, 1, yes or match, else "
        "false, 0, no or no match; every row is then a sample of its own",
    )

    @field_validator("caption")
    @classmethod
    def _check_caption(cls, text: str) -> str:
        parse_caption(text)
        return text

    @model_validator(mode="after")
    def _check_asked(self) -> "TableSection":
        if self.answers is not None and self.question is None:
            raise ValueError("answers needs the question that they answer: write question: COLUMN too")
        if self.question is not None and self.label is not None:
            raise ValueError("question asks, and label says whether a caption is true; keep one of them")
        if self.question is not None and self.caption != CAPTION:
            raise ValueError("with question no caption is read: delete caption, or delete question")
        if self.asked.named and self.captions == "all":
            raise ValueError("with question or label an epoch is every row once: delete captions")
        return self

    @property
    def fields(self) -> frozenset[str]:
        """What its samples hold."""
        if self.question is None:
            return frozenset({"captions"} if self.label is None else {"captions", "label"})
        return frozenset({"question"} if self.answers is None else {"question", "answers"})

    @property
    def rule(self) -> CaptionRule | None:
        """The caption rule; None where questions are read instead."""
        return parse_caption(self.caption) if self.question is None else None

    @property
    def asked(self) -> AnswerColumns:
        """The columns of questions, answers and labels."""
        return AnswerColumns(self.question, self.answers, self.label)
