"""How one sees the keys of questions, answers, labels and conversations at work."""

from key_effect import Effect, key
from key_worlds_answers import fetched, held

OTHER = "data={kind: image_folder, path: FOLDER/classes}"
TABLES = ("jsonl", "parquet", "hub")
QUICK = ("data.downloads.seconds=0.3",)

EFFECTS: dict[str, Effect] = {
    **{f"data.question:{kind}": key(held, f"asked_{kind}", "", "data.question=second") for kind in TABLES},
    **{f"data.answers:{kind}": key(held, f"asked_{kind}", "", "data.answers=answer") for kind in TABLES},
    **{f"data.label:{kind}": key(held, f"labelled_{kind}", "", "data.label=fails") for kind in TABLES},
    "data.kind:conversations": Effect(held, "chats", [], [OTHER, "task={kind: captioning}"]),
    "data.max_bad_fraction:conversations": key(
        held, "chats", "", "data.max_bad_fraction=0.2", more=("data.path=FOLDER/odd_chats.jsonl",)
    ),
    "data.path:conversations": key(held, "chats", "", "data.path=FOLDER/fewer_chats.jsonl"),
    "data.images:conversations": key(held, "chats", "", "data.images=FOLDER/others"),
    "data.id:conversations": key(held, "chats", "", "data.id=sku"),
    "data.split:conversations": key(held, "chats_hash", "", "data.split={test: 60%, by: sku}"),
    "data.splits:conversations": key(held, "chats", "", "data.splits={train: extra, validation: val, test: test}"),
    "data.downloads.folder": key(fetched, "web", "", "data.downloads.folder=FOLDER/kept2", more=QUICK),
    "data.downloads.max_bytes": key(fetched, "web", "", "data.downloads.max_bytes=10", more=QUICK),
    "data.downloads.seconds": key(fetched, "web", "data.downloads.seconds=0.3", "data.downloads.seconds=30"),
}
