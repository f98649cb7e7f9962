"""No secret and no trace of this machine gets past the scan, wherever it stands; and ordinary files pass."""

import json
import struct
from pathlib import Path

import pytest
from push_world import SECRETS, secret_of

from mmtune.ground.errors import PushError
from mmtune.ground.secret_patterns import find_secrets, is_secret_value, own_secrets
from mmtune.leak_scan import Machine, find_leaks, this_machine

MACHINE = Machine(("/home/zebra", "/srv/zebra-data"), (("user name", "zebra"), ("host name", "stable7")), {})


def leaks_of(path: Path, text: str | bytes, *, machine: Machine = MACHINE, copied: bool = False) -> list[str]:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return [str(leak) for leak in find_leaks(path.name, path, machine, copied=copied)]


def tensors_with(metadata: dict[str, str]) -> bytes:
    header = json.dumps(
        {"__metadata__": metadata, "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    ).encode()
    return struct.pack("<Q", len(header)) + header + b"\0\0\0\0"


@pytest.mark.parametrize("kind", SECRETS)
def test_every_form_of_secret_is_seen_and_not_repeated(kind: str, tmp_path: Path) -> None:
    secret = secret_of(kind)
    as_key = json.dumps({"outer": [{secret: 1}]})
    as_value = json.dumps({"outer": {"inner": f"see {secret} there"}})
    escaped = as_value.replace(secret, "".join(f"\\u{ord(letter):04x}" for letter in secret))
    assert json.loads(escaped) == json.loads(as_value)
    twice = as_value.replace('"outer"', '"x": "y", "outer"')[:-1] + ', "outer": 1}'
    for name, text in [
        ("a.json", as_value),
        ("b.json", as_key),
        ("c.json", escaped),
        ("d.json", twice),
        ("e.json", "{broken " + secret),
        ("README.md", f"# Title\n\nsome text {secret}\n"),
        ("chat_template.jinja", "{# " + secret + " #}"),
        ("w.safetensors", tensors_with({"note": secret})),
        ("tokenizer.json", as_value),
        ("spiece.model", b"\xff\xfe\x00" + secret.encode() + b"\x00\xfe"),
    ]:
        found = leaks_of(tmp_path / name, text)
        assert found and all(line.startswith(name) for line in found), name
        assert any("secret" in line for line in found), name
        assert secret not in "".join(found) and secret[4:] not in "".join(found)
    assert "a.json, outer.inner: looks like a secret" in leaks_of(tmp_path / "a.json", as_value)[0]
    assert "README.md, line 3: " in leaks_of(tmp_path / "README.md", f"# Title\n\nsome {secret}\n")[0]


@pytest.mark.parametrize(
    ("key", "value", "is_secret"),
    [
        ("password", "hunter2-x", True),
        ("db_password", "correcthorse", True),
        ("api_key", "0123456789abcdef0123456789abcdef01234567", True),
        ("wandb_api_key", "0123456789abcdef0123456789abcdef01234567", True),
        ("client_secret", "s3cr3ts", True),
        ("hf_token", "abcdefgh", True),
        ("auth.token", "a1b2c3d4", True),
        ("pad_token", "<|endoftext|>", False),
        ("bos_token", "startoftext1", False),
        ("token", "hello", False),
        ("password", "<your password>", False),
        ("password", "null", False),
        ("api_key", "${API_KEY}", False),
        ("revision", "0123456789abcdef0123456789abcdef01234567", False),
        ("weight_hash", "0123456789abcdef0123456789abcdef01234567", False),
        ("secret", "", False),
    ],
)
def test_values_of_names_that_ask_for_silence(key: str, value: str, is_secret: bool, tmp_path: Path) -> None:
    assert is_secret_value(key, value) is is_secret
    assert bool(leaks_of(tmp_path / "x.json", json.dumps({"a": {key: value}}))) is is_secret
    for text in (f'{key} = "{value}"', f"{key}: '{value}'", f"export {key}={value}", f'--{key}="{value}"'):
        assert bool(find_secrets(text)) is is_secret, text


@pytest.mark.parametrize(
    "text",
    [
        "the password: see below",
        "a secret: nobody knows why",
        "a risk-averse-and-careful-description2 of sk-learn",
        "the token is cut; num_tokens = 77; max_token: 128",
        "https://huggingface.co/openai/clip@main and mail to a@b.org at 10:30@noon",
        "sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "keyboard: qwerty12345, monkey = 1234567890ab",
        "HF_TOKEN=$HF_TOKEN hf_hub_download hf_transfer",
    ],
)
def test_ordinary_text_passes(text: str, tmp_path: Path) -> None:
    assert leaks_of(tmp_path / "README.md", text) == []
    assert leaks_of(tmp_path / "a.json", json.dumps({"text": text})) == []


def test_files_of_real_models_pass(tiny_clip_folder: Path, tiny_siglip_folder: Path) -> None:
    import mmtune

    glyphs = Path(mmtune.__file__).parent / "assets" / "glyph_clip"
    for folder in (tiny_clip_folder, tiny_siglip_folder, glyphs):
        for path in folder.iterdir():
            assert find_leaks(path.name, path, this_machine(), copied=True) == [], path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/home/zebra/photos/a.jpg", "a path of this machine"),
        ("in /srv/zebra-data: all", "a path of this machine"),
        ("made at /scratch/someone/run", "an absolute path"),
        ("~/data/x", "an absolute path"),
        ("C:\\Users\\someone\\data", "an absolute path"),
        ("file:///scratch/x", "an absolute path"),
        ("--data=/scratch/someone/run", "an absolute path"),
        ("copied from someone@nas:/export/data/x", "an absolute path"),
        ("train on C:/someone/data", "an absolute path"),
        ("by Zebra on monday", "the user name of this machine"),
        ("trained on stable7.", "the host name of this machine"),
    ],
)
def test_traces_of_a_machine_are_seen(text: str, words: str, tmp_path: Path) -> None:
    for name, content in [
        ("adapter_config.json", json.dumps({"a": {"b": text}})),
        ("README.md", text),
        ("w.safetensors", tensors_with({"from": text})),
    ]:
        assert any(line.endswith(words) for line in leaks_of(tmp_path / name, content)), name


def test_what_only_looks_like_a_trace(tmp_path: Path) -> None:
    fine = (
        "https://huggingface.co/a/b, image/png, and/or/both, 1/2/3, </b>/<i>, a zebrafish, unstable7, ./data/x, "
        "data/x, https://a.org/?next=/b/c&to=/d/e, <a href=/docs/x/y>"
    )
    assert leaks_of(tmp_path / "README.md", fine) == []
    elsewhere = json.dumps({"name_or_path": "/raid/someone/bert"})
    assert leaks_of(tmp_path / "tokenizer_config.json", elsewhere, copied=True) == [], "public already, and not ours"
    assert leaks_of(tmp_path / "tokenizer_config.json", elsewhere) != []
    here = json.dumps({"name_or_path": str(tmp_path), "shell": "/usr/bin/env"})
    assert leaks_of(tmp_path / "config.json", here, copied=True) == [
        "config.json, name_or_path: a path of this machine"
    ]
    ours = json.dumps({"name_or_path": "/home/zebra/bert"})
    assert leaks_of(tmp_path / "tokenizer_config.json", ours, copied=True) != []
    words = json.dumps({"model": {"vocab": {"zebra": 1, "/usr/bin": 2, "/root": 3, "stable7": 4}}})
    rooted = Machine(("/root",), MACHINE.names)
    assert leaks_of(tmp_path / "tokenizer.json", words, machine=rooted, copied=True) == []


def test_this_machine_is_known_by_its_folders_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "zebra")
    monkeypatch.setattr("socket.gethostname", lambda: "stable7.example.org")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    (tmp_path / "real").mkdir()
    found = this_machine([tmp_path / "link"])
    assert {str(tmp_path), str(tmp_path / "link"), str(tmp_path / "real"), str(Path.home())} <= set(found.paths)
    assert {name for _, name in found.names} == {"zebra", "stable7", "stable7.example.org"}
    assert "zebra" not in {name for _, name in this_machine(public=["Zebra/products"]).names}
    for plain in ("root", "model", "train", "ab"):
        monkeypatch.setattr("getpass.getuser", lambda name=plain: name)
        assert plain not in {name for _, name in this_machine().names}


def test_the_value_of_a_token_is_found_even_among_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MY_API_KEY", "DB_PASSWORD", "HF_TOKEN"):
        monkeypatch.setenv(name, f"value-of-{name.lower()}")
    monkeypatch.setenv("TOKEN_FOLDER", "/a/folder/of/tokens")
    monkeypatch.setenv("MY_TOKENIZER", "openai/clip-vit-base-patch32")
    machine = this_machine()
    assert "MY_TOKENIZER" not in machine.secrets
    assert {"MY_API_KEY", "DB_PASSWORD", "HF_TOKEN"} <= set(machine.secrets) and "TOKEN_FOLDER" not in machine.secrets
    assert "value-of" not in repr(machine)
    body = tensors_with({}) + b"\0" * ((1 << 20) - 30) + b"value-of-db_password" + b"\0" * 9
    found = leaks_of(tmp_path / "w.safetensors", body, machine=machine)
    assert found == ["w.safetensors, anywhere in it: the value of DB_PASSWORD"]
    assert own_secrets({"A_TOKEN": "short"}).keys() <= {"HF_TOKEN"}


def test_what_is_no_safetensors_file_is_said_to_be_damaged(tmp_path: Path) -> None:
    for content in (b"", b"abc", b"\xff" * 64, b"\x04" + b"\0" * 7 + b"{{{{"):
        with pytest.raises(PushError, match="w.safetensors is damaged"):
            leaks_of(tmp_path / "w.safetensors", content)
