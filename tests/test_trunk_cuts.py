"""Where a trunk ends: below the lowest trained layer, where nothing is trained and nothing is random; and its name."""

from typing import Any

import pytest
import torch
from adapter_examples import SECTIONS
from torch import nn
from trunk_cases import Drawn, Twins, World, lora, make_world

from mmtune.ground.image_augmentation import AugmentSection
from mmtune.shown_media import ShownMedia
from mmtune.trunk_cuts import MEDIA, TEXT, Cut, below, find_cuts, pass_throughs, standing_in, tower_of
from mmtune.trunk_keys import NO_KEY, about_trunk, fingerprint, media_key, tokens_key

BOTH = ["vision", "text"]
FIRST = "the first layer of the {} is trained"
BEFORE = "what stands before the {}'s layers is trained"

CLIP: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "all layers": ({"parts": BOTH}, FIRST, FIRST),
    "last 1": ({"parts": BOTH, "layers": "last 1"}, ("layers", "vision", 1), ("layers", "text", 1)),
    "vision alone": ({"parts": ["vision"], "layers": "last 1"}, ("layers", "vision", 1), ("whole", "text", 0)),
    "text alone": ({"parts": ["text"]}, ("whole", "vision", 0), FIRST),
    "one projection": ({"kind": "head_only", "parts": ["vision"]}, ("layers", "vision", 2), ("whole", "text", 0)),
    "heads": ({"kind": "head_only", "parts": BOTH}, ("layers", "vision", 2), ("layers", "text", 2)),
    "full, one part": ({"kind": "full", "parts": ["text"]}, ("whole", "vision", 0), BEFORE),
    "full": ({"kind": "full", "parts": BOTH}, BEFORE, BEFORE),
    "layernorm": ({"kind": "layernorm", "parts": BOTH}, BEFORE, FIRST),
    "layernorm, one part": ({"kind": "layernorm", "parts": ["text"]}, ("whole", "vision", 0), FIRST),
    "trainable_tokens": ({"kind": "trainable_tokens", "tokens": [65, 66]}, ("whole", "vision", 0), BEFORE),
    "ia3": ({"kind": "ia3", "parts": BOTH, "layers": "last 1"}, ("layers", "vision", 1), ("layers", "text", 1)),
    "vera": ({"kind": "vera", "parts": BOTH, "layers": "last 1"}, ("layers", "vision", 1), ("layers", "text", 1)),
}
"""Adapter -> cut of images and of texts, as (kind, part, depth), or why there is none."""

OTHERS: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "vit + bert": ({"parts": BOTH, "layers": "last 1"}, ("layers", "vision", 1), ("layers", "text", 1)),
    "convnext + bert": (
        {"parts": ["text"], "layers": "last 1"},
        "the vision of family dual_encoder declares no cut",
        ("layers", "text", 1),
    ),
    "blip2": ({"parts": ["qformer"]}, ("layers", "vision", 2), "the qformer of family blip2 declares no cut"),
    "blip": ({"parts": ["text"]}, ("whole", "vision", 0), FIRST),
    "blip matching": ({"parts": ["text"]}, ("layers", "vision", 2), None),
    "git": ({"parts": ["vision"], "layers": "last 1"}, ("layers", "vision", 1), None),
    "blip2 (OPT)": ({"parts": ["text"]}, ("image_side", "vision+qformer+connector", 0), None),
    "instructblip (LLaMA)": ({"parts": ["text"]}, ("layers", "vision", 2), None),
    "llava": ({"parts": ["text"]}, ("image_side", "vision+connector", 0), None),
    "qwen3_vl": (
        {"parts": ["connector"]},
        "its image side is trained, and the vision of family chat declares no cut",
        None,
    ),
    "vilt vqa": ({"parts": ["encoder"], "layers": "last 1"}, "family vilt has no vision tower of its own", None),
}


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    return Twins(tmp_path_factory.mktemp("twins"))


def world_of(twins: Twins, name: str, values: dict[str, Any]) -> World:
    section = SECTIONS.validate_python(values) if "tokens" in values else None
    if section is None:
        plain = values.get("kind", "lora") in ("full", "head_only", "layernorm")
        targets = {} if plain else {"targets": ["attention", "mlp"]}
        targets |= {"rank": 16} if values.get("kind") == "vera" else {}
        section = SECTIONS.validate_python({**targets, **values}) if "kind" in values else lora(**values)
    return make_world(twins.copy(name), section, twins.ability(name))


def cuts(world: World) -> dict[str, Cut | str]:
    adapted = world.adapted
    touched = [*adapted.part_of, *(name for names in adapted.modules.values() for name in names)]
    return find_cuts(world.backbone.model, world.backbone.traits, world.ability, touched)


@pytest.mark.parametrize(("name", "which"), [*(("clip", which) for which in CLIP), *((name, name) for name in OTHERS)])
def test_the_cut_of_each_side(twins: Twins, name: str, which: str) -> None:
    values, *expected = (CLIP if name == "clip" else OTHERS)[which]
    world = world_of(twins, name, values)
    found = cuts(world)
    for side, wanted in zip((MEDIA, TEXT), expected, strict=True):
        cut = found.get(side)
        if isinstance(cut, Cut):
            assert (cut.kind, cut.part, cut.depth) == wanted
            nothing_below_is_trained_or_random(world, cut)
        else:
            part = "vision" if side == MEDIA else "text"
            assert cut == (wanted.format(part) if wanted else None)


def nothing_below_is_trained_or_random(world: World, cut: Cut) -> None:
    """And something above it is trained, in the layer right at the cut where there is one."""
    model = world.backbone.model
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and not below(cut.roots, trained)
    modules = dict(model.named_modules())
    lower = [modules[name] for name in below(cut.roots, modules)]
    assert lower or cut.kind != "layers"
    assert not [module for module in lower if module.training], "what is frozen runs in eval mode"
    layers = world.backbone.traits.layers.get(cut.part)
    if cut.kind == "layers" and layers and cut.depth < len(model.get_submodule(layers)):
        assert below([f"{layers}.{cut.depth}"], trained)


def test_a_part_that_is_named_like_another_is_not_below_it() -> None:
    names = ["encoder.layers.1.weight", "encoder.layers.10.weight", "encoder.layers_norm.weight"]
    assert below(["encoder.layers.1"], names) == names[:1]
    assert below(["encoder.layers"], names) == names[:2]


# --- standing in


def test_the_old_modules_come_back(twins: Twins) -> None:
    model = twins.copy("clip").model
    before = {name: id(module) for name, module in model.named_modules()}
    keys = {name: id(value) for name, value in model.state_dict(keep_vars=True).items()}
    path = "vision_model.encoder.layers.1"
    with standing_in(model, {path: nn.Identity(), "text_model.embeddings": nn.Identity()}):
        assert isinstance(model.get_submodule(path), nn.Identity)
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert {name: id(value) for name, value in model.state_dict(keep_vars=True).items()} == keys


def test_the_old_modules_come_back_after_an_error(twins: Twins) -> None:
    model = twins.copy("clip").model
    before = {name: id(module) for name, module in model.named_modules()}
    with pytest.raises(ZeroDivisionError), standing_in(model, {"vision_model.encoder": nn.Identity()}):
        _ = 1 / 0
    assert {name: id(module) for name, module in model.named_modules()} == before
    unknown = {"vision_model.encoder": nn.Identity(), "vision_model.nothing": nn.Identity()}
    with pytest.raises(KeyError), standing_in(model, unknown):
        pass
    assert {name: id(module) for name, module in model.named_modules()} == before, "of those that stood in already too"


def test_a_model_beside_it_is_not_touched(twins: Twins) -> None:
    one, other = twins.copy("clip").model, twins.copy("clip").model
    with standing_in(one, {"vision_model.encoder": nn.Identity()}):
        assert not isinstance(other.get_submodule("vision_model.encoder"), nn.Identity)


def test_images_that_a_beam_search_repeats_have_their_states_repeated(twins: Twins) -> None:
    model = twins.copy("clip").model
    states = torch.arange(6.0).reshape(2, 1, 3)
    given = pass_throughs(model, ("vision_model.embeddings",), states)["vision_model.embeddings"]
    assert torch.equal(given(torch.zeros(4, 3, 1, 1)), states[[0, 0, 1, 1]])
    assert given(torch.zeros(2, 3, 1, 1)) is states


def test_a_trunk_draws_no_random_numbers(twins: Twins) -> None:
    """Though what is above the cut would: it is not reached."""
    world = world_of(twins, "blip2", {"parts": ["qformer"]})
    family, model = world.backbone.family, world.backbone.model
    tower = tower_of(model, world.backbone.traits, cuts(world)[MEDIA])
    inputs = world.batches([[0, 1]])[0].inputs
    torch.manual_seed(0)
    state = torch.get_rng_state()
    tower.below(lambda: family.embed_media(model, inputs))
    assert torch.equal(torch.get_rng_state(), state)
    family.embed_media(model, inputs)
    assert not torch.equal(torch.get_rng_state(), state), "the whole tower draws its dropout"


# --- what a trunk is called, and what its inputs are


def name_of(world: World, side: str = MEDIA, **changed: Any) -> str:
    cut = cuts(world)[side]
    assert isinstance(cut, Cut)
    return fingerprint(about_trunk(world.backbone, cut, **{"precision": "no", "device": "cpu", **changed}))


LAST = {"parts": BOTH, "layers": "last 1"}


def test_the_same_trunk_has_the_same_name(twins: Twins) -> None:
    """Whatever is trained above it, and how."""
    name = name_of(world_of(twins, "clip", LAST))
    for values in ({**LAST, "rank": 1}, {**LAST, "targets": ["mlp"]}, {**LAST, "kind": "ia3"}):
        assert name_of(world_of(twins, "clip", values)) == name
    world = world_of(twins, "clip", LAST)
    with torch.no_grad():
        world.backbone.model.vision_model.encoder.layers[1].mlp.fc1.bias.add_(1)
        world.backbone.model.text_model.encoder.layers[0].mlp.fc1.bias.add_(1)
    assert name_of(world) == name, "weights above the cut, and of the other tower, have no say"


def test_another_trunk_has_another_name(twins: Twins) -> None:
    names = {"": name_of(world_of(twins, "clip", LAST)), "text": name_of(world_of(twins, "clip", LAST), TEXT)}
    world = world_of(twins, "clip", LAST)
    names |= {"precision": name_of(world, precision="bf16"), "device": name_of(world, device="meta")}
    names["depth"] = name_of(world_of(twins, "clip", {"kind": "head_only", "parts": BOTH}))
    for place in ("encoder.layers.0.mlp.fc1.bias", "embeddings.class_embedding", "pre_layrnorm.weight"):
        world = world_of(twins, "clip", LAST)
        with torch.no_grad():
            world.backbone.model.vision_model.get_parameter(place)[0] += 2e-7
        names[place] = name_of(world)
    for key, value in {"image_mean": [0.5, 0.5, 0.51], "image_processing": "fast", "do_rescale": False}.items():
        world = world_of(twins, "clip", LAST)
        old = getattr(world.backbone.processor.image_processor, key, None)
        setattr(world.backbone.processor.image_processor, key, value)
        names[key] = name_of(world)
        if old is None:
            delattr(world.backbone.processor.image_processor, key)
        else:
            setattr(world.backbone.processor.image_processor, key, old)
    world = world_of(twins, "clip", LAST)
    world.backbone.model.config._attn_implementation = "eager"
    names["attention"] = name_of(world)
    for quantize in ("4bit", "8bit"):
        names[quantize] = name_of(make_world(twins.copy("clip", quantize), lora(**LAST)))
    assert len(set(names.values())) == len(names), names
    assert name_of(world_of(twins, "clip", LAST)) == names[""]


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_a_forward_pass_does_not_rename_a_quantized_trunk(twins: Twins, quantize: str) -> None:
    world = make_world(twins.copy("clip", quantize), lora(**LAST))
    name = name_of(world)
    world.step([[0, 1]])
    assert name_of(world) == name


def test_another_text_is_another_key(twins: Twins) -> None:
    for name in ("clip", "siglip", "vit + bert"):
        backbone = twins.copy(name)
        encoded = [backbone.family.encode_text(backbone.processor, text) for text in ("a dog", "a dog", "a dog b")]
        keys = [tokens_key(one) for one in encoded]
        assert keys[0] == keys[1] != keys[2]


def test_another_image_is_another_key() -> None:
    still, crop, views = AugmentSection(), AugmentSection(crop=0.5), AugmentSection(crop=0.5, views=2)
    one, other = Drawn(0), Drawn(1)
    shown = ShownMedia(one, still)
    keys = [
        media_key([shown], [b"one"]),
        media_key([shown], [b"other"]),
        media_key([shown, shown], [b"one", b"other"]),
        media_key([shown, shown], [b"other", b"one"]),
        media_key([ShownMedia(one, views, (0, "view", 0, "s"))], [b"one"]),
        media_key([ShownMedia(one, views, (0, "view", 1, "s"))], [b"one"]),
    ]
    assert len(set(keys)) == len(keys) and NO_KEY not in keys
    assert media_key([ShownMedia(other)], [b"one"]) == keys[0], "where it lies has no say"
    assert media_key([ShownMedia(one, crop, (0,))], [b"one"]) == NO_KEY, "it is new every time"
