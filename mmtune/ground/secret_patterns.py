"""What secrets look like in text: tokens of the usual services, keys, and values given to names that ask for silence.

A table of our own and not a library: those that keep such tables read files line by line, know nothing of JSON keys or
safetensors headers, flag the random-looking words of every tokenizer, and lack the hub's own tokens.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_ALONE = r"(?<![A-Za-z0-9_])"
"""A token begins here: ``risk-...`` is no ``sk-...``."""

FORMS: dict[str, tuple[tuple[str, ...], str]] = {
    "Hugging Face token": (("hf_", "api_org_"), _ALONE + r"(?:hf_[A-Za-z0-9]{20,}|api_org_[A-Za-z0-9]{20,})"),
    "sk- API key": (("sk-",), _ALONE + r"sk-(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}"),
    "GitHub token": (
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        _ALONE + r"(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})",
    ),
    "GitLab token": (("glpat-",), _ALONE + r"glpat-[A-Za-z0-9_-]{16,}"),
    "AWS access key": (("AKIA", "ASIA"), _ALONE + r"(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"),
    "Google API key": (("AIza",), _ALONE + r"AIza[A-Za-z0-9_-]{30,}"),
    "Google OAuth token": (("ya29.",), _ALONE + r"ya29\.[A-Za-z0-9_-]{20,}"),
    "Slack token": (("xox",), _ALONE + r"xox[abeoprs]-[A-Za-z0-9-]{10,}"),
    "package registry token": (
        ("npm_", "pypi-AgEI"),
        _ALONE + r"(?:npm_[A-Za-z0-9]{36}|pypi-AgEI[A-Za-z0-9_-]{20,})",
    ),
    "Weights & Biases key": (("wandb_v",), _ALONE + r"wandb_v\d_[A-Za-z0-9_]{20,}"),
    "private key": (("-----BEGIN",), r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    "JSON web token": (("eyJ",), _ALONE + r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
    "address with a password": (
        ("://",),
        r"(?<![A-Za-z0-9])[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s/:@\"'<>{}]{1,80}:[^\s/@\"'<>{}]{1,200}@[A-Za-z0-9\[]",
    ),
    "password of a netrc file": (("password",), r"\bpassword[ \t]+[0-9a-f]{40}\b"),
}
"""Kind -> what every one of it contains (quickly searched for first), and its whole form."""

NAMES = re.compile(
    r"(?:passw(?:or)?d|passphrase|pwd|secret|credentials?"
    r"|(?:api|access|secret|private|wandb|auth|account|signing|encryption|client)[_-]?key"
    r"|(?:^|[.\]])token"
    r"|(?:^|[_.-])(?:api|auth|access|hf|hub|hugging_?face|github|gitlab|wandb|bearer|refresh|session|secret|login|user)"
    r"[_-]?token)$",
    re.IGNORECASE,
)
"""Names whose value is a secret; the end counts (``db_password``), and ``pad_token`` is none of them."""

SIGN = re.compile(r"[:=]")
NAME_BEFORE = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]{1,60})[\"'`]?[ \t]*$")
VALUE_AFTER = re.compile(r"[ \t]*(?:([\"'`])(?P<quoted>[^\"'`\n]{1,400})\1|(?P<bare>[^\s\"'`,;&)}\]]{1,400}))")
"""An assignment is looked for from its sign: there are few, and words are many."""

PLACEHOLDER = re.compile(
    r"[<{\[$%*].*|x{3,}|\.{2,}.*|(?:none|null|true|false|auto|default|unset|redacted|changeme|your[-_ ].*|my[-_ ].*)",
    re.IGNORECASE,
)
"""Values that stand for a secret and are none."""

SHORTEST_QUOTED, SHORTEST_BARE = 4, 8
"""Letters from which a value is taken for a secret: in free text ``password: see below`` is none."""

ENVIRONMENT_NAMES = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|APIKEY|KEY|CREDENTIAL)S?(?:_|$)", re.IGNORECASE
)
SHORTEST_ENVIRONMENT = 12


@dataclass(frozen=True)
class Secret:
    """Something that looks like a secret: its kind and where it begins, never its text."""

    kind: str
    position: int


def find_secrets(text: str) -> list[Secret]:
    """Every secret in a text, in order."""
    found = [
        Secret(kind, match.start())
        for kind, (hints, pattern) in FORMS.items()
        if any(hint in text for hint in hints)
        for match in re.finditer(pattern, text)
    ]
    return sorted([*found, *_assignments(text)], key=lambda secret: secret.position)


def _assignments(text: str) -> Iterator[Secret]:
    """Secrets by the name that they are given to."""
    for sign in SIGN.finditer(text):
        start = max(0, sign.start() - 70)
        name = NAME_BEFORE.search(text[start : sign.start()].rpartition("\n")[2])
        if name is None or not NAMES.search(name[1]) or (value := VALUE_AFTER.match(text, sign.end())) is None:
            continue
        is_value = value["quoted"] is not None or sign[0] == "="
        if is_secret_value(name[1], value["quoted"] or value["bare"], quoted=is_value):
            yield Secret(f"value of {name[1].rpartition('.')[2]}", sign.start())


def is_secret_value(name: str, value: str, *, quoted: bool = True) -> bool:
    """Whether ``value`` is what ``name`` would hide.

    Args:
        name: a key or variable, such as ``wandb_api_key``.
        value: what is given to it.
        quoted: it is surely a value; without that it may be the next word of a sentence.
    """
    if not NAMES.search(name) or PLACEHOLDER.fullmatch(value):
        return False
    if re.split(r"[.\]]", name)[-1].lower() == "token" and value.strip("\u2581</w>").isalpha():
        return False  # a word of a vocabulary: "token": "hello"
    if quoted:
        return len(value) >= SHORTEST_QUOTED and " " not in value.strip()
    return len(value) >= SHORTEST_BARE and any(letter.isdigit() for letter in value)


def own_secrets(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Secrets of this process, by name: the hub's token, and environment variables named like a secret."""
    import huggingface_hub

    found = {
        name: value
        for name, value in environment.items()
        if ENVIRONMENT_NAMES.search(name) and len(value) >= SHORTEST_ENVIRONMENT and not value.startswith(("/", "~"))
    }
    if token := huggingface_hub.get_token():
        found.setdefault("HF_TOKEN", token)
    return found
