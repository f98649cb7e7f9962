"""How one sees each key of `data` at work."""

from key_effect import Effect, key
from key_worlds import bad_allowed, encoded, sampled
from key_worlds_sound import heard

HASH = "data.split={validation: 20%, test: 20%}"
FLAT = ("data.path=FOLDER/flat",)

EFFECTS: dict[str, Effect] = {
    "data.kind:glyphs": key(sampled, "glyphs", "", "data={kind: image_folder, path: FOLDER/classes}"),
    "data.kind:image_folder": key(sampled, "folders", "", "data={kind: glyphs, characters: 10}"),
    "data.kind:jsonl": key(sampled, "column", "", "data={kind: image_folder, path: FOLDER/classes}"),
    "data.captions:glyphs": key(sampled, "glyphs", "", "data.captions=all"),
    "data.captions:image_folder": key(sampled, "folders", "", "data.captions=all"),
    "data.captions:jsonl": key(sampled, "column", "", "data.captions=all"),
    "data.max_bad_fraction:glyphs": key(bad_allowed, "glyphs", "", "data.max_bad_fraction=0.1"),
    "data.max_bad_fraction:image_folder": key(
        sampled, "folders", "", "data.max_bad_fraction=0.2", more=("data.path=FOLDER/broken",)
    ),
    "data.max_bad_fraction:jsonl": key(
        sampled, "column", "", "data.max_bad_fraction=0.2", more=("data.path=FOLDER/odd.jsonl",)
    ),
    "data.augment.crop": key(encoded, "column", "", "data.augment.crop=0.3"),
    "data.augment.flip": key(encoded, "column", "", "data.augment.flip=true"),
    "data.augment.colour": key(encoded, "column", "", "data.augment.colour=0.5"),
    "data.look:glyphs": key(sampled, "glyphs", "", "data.look=clean"),
    "data.fonts:glyphs": key(sampled, "glyphs", "", "data.fonts=[stix]"),
    "data.seed:glyphs": key(sampled, "glyphs", "", "data.seed=1"),
    "data.characters:glyphs": key(sampled, "glyphs", "", "data.characters=30"),
    "data.path:image_folder": key(sampled, "folders", "", "data.path=FOLDER/classes2"),
    "data.caption:image_folder": key(sampled, "folders", "", "data.caption='no {class}'"),
    "data.path:jsonl": key(sampled, "column", "", "data.path=FOLDER/fewer.jsonl"),
    "data.path.train": key(sampled, "files", "", "data.path.train=FOLDER/train_fewer.jsonl"),
    "data.path.validation": key(sampled, "files", "", "data.path.validation=FOLDER/validation_fewer.jsonl"),
    "data.path.test": key(sampled, "files", "", "data.path.test=FOLDER/test_fewer.jsonl"),
    "data.format:jsonl": key(sampled, "column", "", "data.format=csv"),
    "data.images:jsonl": key(sampled, "column", "", "data.images=FOLDER/others"),
    "data.image:jsonl": key(sampled, "column", "", "data.image=second"),
    "data.sounds:jsonl": key(heard, "sounds", "", "data.sounds=FOLDER/other_sounds"),
    "data.audio:jsonl": key(heard, "sounds", "", "data.audio=second"),
    "data.caption:jsonl": key(sampled, "column", "", "data.caption='{title} by {sku}'"),
    "data.id:jsonl": key(sampled, "column", "", "data.id=sku"),
    "data.split:jsonl": key(sampled, "hash", "", "data.split={validation: 40%, test: 20%}"),
    "data.split:image_folder": key(sampled, "folders", HASH, "data.split={test: 50%}", more=FLAT),
    "data.split.validation": key(sampled, "hash", "", "data.split.validation=60%"),
    "data.split.test": key(sampled, "hash", "", "data.split.test=60%"),
    "data.split.by": key(sampled, "hash", "", "data.split.by=product"),
    "data.splits.train": key(sampled, "column", "", "data.splits.train=[train, extra]"),
    "data.splits.validation": key(sampled, "column", "", "data.splits.validation=[val, extra]"),
    "data.splits.test": key(sampled, "column", "", "data.splits.test=[test, extra]"),
    "data.splits.column": key(sampled, "column", "", "data.splits.column=fold"),
}
