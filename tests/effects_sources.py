"""How one sees each key of the sources beyond tables and folders at work."""

from key_effect import Effect, key
from key_worlds import sampled
from key_worlds_sources import mixed, prepared

OTHER = "data={kind: image_folder, path: FOLDER/classes}"
HUB = "data={{kind: hub, id: owner/name, name: {}, revision: {}, splits: {{train: train}}}}"
ONE_SOURCE = "data.sources={c: {kind: jsonl, path: FOLDER/pairs.jsonl, images: FOLDER/images, split: {test: 20%}}}"
BASES = {
    "parquet": "parquet",
    "hub": "hub",
    "webdataset": "shards",
    "coco": "coco",
    "coop": "coop",
    "karpathy": "karpathy",
}
ODD = {
    "parquet": "data.path=FOLDER/odd.parquet",
    "hub": "data.id=FOLDER/saved_odd",
    "webdataset": "data.path.train=FOLDER/3.tar",
    "coco": "data.path.train=FOLDER/coco3.json",
    "coop": "data.path=FOLDER/coop3.json",
    "karpathy": "data.path=FOLDER/karpathy3.json",
}

EFFECTS: dict[str, Effect] = {
    **{f"data.kind:{kind}": key(sampled, base, "", OTHER) for kind, base in BASES.items()},
    **{f"data.captions:{kind}": key(sampled, base, "", "data.captions=all") for kind, base in BASES.items()},
    **{
        f"data.max_bad_fraction:{kind}": key(sampled, base, "", "data.max_bad_fraction=0.4", more=(ODD[kind],))
        for kind, base in BASES.items()
    },
    "data.path:parquet": key(sampled, "parquet", "", "data.path=FOLDER/b.parquet"),
    "data.images:parquet": key(sampled, "parquet_paths", "", "data.images=FOLDER/others"),
    "data.image:parquet": key(sampled, "parquet", "", "data.image=second"),
    "data.caption:parquet": key(sampled, "parquet", "", "data.caption='{title} by {sku}'"),
    "data.id:parquet": key(sampled, "parquet", "", "data.id=sku"),
    "data.split:parquet": key(sampled, "parquet_hash", "", "data.split={test: 60%, by: product}"),
    "data.splits:parquet": key(sampled, "parquet", "", "data.splits={train: extra, validation: val, test: test}"),
    "data.id:hub": key(sampled, "hub", "", "data.id=FOLDER/saved2"),
    "data.name:hub": key(prepared, "hub", HUB.format("large", "a" * 40), HUB.format("small", "a" * 40)),
    "data.revision:hub": key(prepared, "hub", HUB.format("large", "a" * 40), HUB.format("large", "b" * 40)),
    "data.image:hub": key(sampled, "hub", "", "data.image=second"),
    "data.caption:hub": key(sampled, "hub", "", "data.caption='{title} by {sku}'"),
    "data.split:hub": key(sampled, "hub_hash", "", "data.split={test: 60%, by: product}"),
    "data.splits:hub": key(sampled, "hub", "", "data.splits={train: extra, validation: val, test: test}"),
    "data.path:webdataset": key(sampled, "shards_hash", "", "data.path='FOLDER/{1..2}.tar'"),
    "data.image:webdataset": key(sampled, "shards", "", "data.image=[seg.png]"),
    "data.caption:webdataset": key(sampled, "shards", "", "data.caption='{title}, {txt}'"),
    "data.split:webdataset": key(sampled, "shards_hash", "", "data.split={test: 60%, by: shop}"),
    "data.path:coco": key(sampled, "coco_hash", "", "data.path=FOLDER/coco1.json"),
    "data.images:coco": key(sampled, "coco", "", "data.images=FOLDER/others"),
    "data.images.train": key(sampled, "coco_folders", "", "data.images.train=FOLDER/others"),
    "data.images.validation": key(sampled, "coco_folders", "", "data.images.validation=FOLDER/others"),
    "data.images.test": key(sampled, "coco_folders", "", "data.images.test=FOLDER/others"),
    "data.split:coco": key(sampled, "coco_hash", "", "data.split={test: 60%, by: shop}"),
    "data.path:coop": key(sampled, "coop", "", "data.path=FOLDER/coop2.json"),
    "data.images:coop": key(sampled, "coop", "", "data.images=FOLDER/others"),
    "data.path:karpathy": key(sampled, "karpathy", "", "data.path=FOLDER/karpathy2.json"),
    "data.images:karpathy": key(sampled, "karpathy", "", "data.images=FOLDER/others"),
    "data.restval:karpathy": key(sampled, "karpathy", "", "data.restval=false"),
    "data.kind:mix": key(mixed, "mix", "", "data={kind: glyphs, fonts: [mono], characters: 10}"),
    "data.sources:mix": key(mixed, "mix", "", ONE_SOURCE),
    "data.weights:mix": key(mixed, "mix", "data.weights={a: 1, b: 1}", "data.weights={a: 1, b: 3}"),
    "data.scored:mix": key(mixed, "mix", "", "data.scored=[a]"),
    "data.max_bad_fraction:mix": key(
        mixed,
        "mix",
        "",
        "data.max_bad_fraction=0.4",
        more=("data.sources.b.path=FOLDER/odd.jsonl", "data.sources.b.max_bad_fraction=0.4"),
    ),
}
