"""A step with the trunk cache is the step without it: loss and every gradient, whatever of the batch was kept."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import SECTIONS
from trunk_cases import (
    BF16,
    INT8,
    STEEP,
    TOLERANCE,
    Twins,
    World,
    computed,
    cuts_of,
    distance,
    gap,
    lora,
    make_world,
    same_bits,
)

from mmtune.adapters import problems
from mmtune.ground.image_augmentation import AugmentSection
from mmtune.ground.kind_folder import kinds
from mmtune.trunk_batches import OURS, keys_of, states_of
from mmtune.trunk_cuts import MEDIA, TEXT
from scripts.method_cells import ROWS

READING = "reading and resizing of images"
"""The cut where the image tower is trained from its first layer on."""

BOTH = ["vision", "text"]
LAST = {MEDIA: "vision below layer 1", TEXT: "text below layer 1"}
IMAGES = {MEDIA: "vision, all of it"}
SIDE = {MEDIA: "vision and connector, all of it"}
QSIDE = {MEDIA: "vision and qformer and connector, all of it"}
BELOW = {MEDIA: "vision below layer 2"}
HEADS = {"kind": "head_only", "parts": BOTH}

CASES: dict[str, list[tuple[Any, dict[str, str]]]] = {
    **{
        name: [
            ({"parts": BOTH, "layers": "last 1"}, LAST),
            ({"parts": ["vision"]}, {MEDIA: READING, TEXT: "text, all of it"}),
            ({"parts": ["text"]}, IMAGES),
            (HEADS, {MEDIA: "vision below layer 2", TEXT: "text below layer 2"}),
        ]
        for name in ("clip", "siglip", "chinese_clip", "blip")
    },
    "siglip2": [({"parts": BOTH, "layers": "last 1"}, LAST), ({"parts": ["text"]}, IMAGES)],
    "align": [
        ({"parts": ["text"], "layers": "last 1"}, {**IMAGES, TEXT: "text below layer 1"}),
        ({"parts": ["text"]}, IMAGES),
    ],
    "clap": [({"parts": ["audio"], "layers": "all"}, {TEXT: "text, all of it"})],
    "vit + bert": [({"parts": BOTH, "layers": "last 1"}, LAST), (HEADS, {**BELOW, TEXT: "text below layer 2"})],
    "dinov2 + roberta": [({"parts": BOTH, "layers": "last 1"}, LAST)],
    "convnext + bert": [({"parts": ["text"], "layers": "last 1"}, {MEDIA: READING, TEXT: "text below layer 1"})],
    "clip_vision_model + clip_text_model": [({"parts": BOTH, "layers": "last 1"}, LAST)],
    "blip2": [
        ({"parts": ["vision"], "layers": "last 1"}, {MEDIA: "vision below layer 1", TEXT: "qformer, all of it"}),
        ({"parts": ["qformer"]}, BELOW),
    ],
    "blip captioning": [({"parts": BOTH, "layers": "last 1"}, {MEDIA: "vision below layer 1"})],
    "blip vqa": [({"parts": ["text", "decoder"]}, BELOW)],
    "blip matching": [({"parts": BOTH, "layers": "last 1"}, {MEDIA: "vision below layer 1"})],
    "blip2 matching": [({"parts": ["qformer"]}, BELOW)],
    "git": [({"parts": ["connector", "text"]}, BELOW)],
    "blip2 (OPT)": [({"parts": ["text"]}, QSIDE), ({"parts": ["qformer"]}, BELOW)],
    "blip2 (T5)": [({"parts": ["text"]}, QSIDE)],
    "instructblip (LLaMA)": [({"parts": ["text"]}, BELOW)],
    "instructblip (T5)": [({"parts": ["qformer"]}, BELOW)],
    **{name: [({"parts": ["text"]}, SIDE)] for name in kinds("backbones")["chat"].FAMILY.model_types},
}
"""Twin -> adapters, and the cuts that each leaves."""

STEEP_ONES = ("align", "clap", "florence2")

NO_TRUNK: dict[tuple[str, str], str] = {
    ("clip", "full"): "what stands before the vision's layers is trained",
    ("clip", "layernorm"): "what stands before the vision's layers is trained",
    ("siglip", "lora"): "the first layer of the vision is trained",
    ("align", "layernorm"): "the vision of family align declares no cut",
    ("blip2", "lora"): "the first layer of the vision is trained",
}
"""(twin, row of the method table) -> why its images have no trunk, only prepared pixels."""


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    return Twins(tmp_path_factory.mktemp("twins"))


def section_of(values: Any) -> Any:
    return SECTIONS.validate_python(values) if "kind" in values else lora(**values)


def compare(world: World, folder: Path, *, mixed_by: float) -> dict[str, str]:
    """Go through a step without a cache, with an empty one, a full one and a half full one; gives the cuts."""
    world.backbone.family = world.plain
    plan = world.plan
    plain = world.step(plan)
    cache = world.fed(folder / "cold")
    cold = world.step(plan)
    assert same_bits(plain, cold), f"an empty cache changes a step by {gap(plain, cold):.1e}"
    numbers, num_read = computed(cache), world.num_read
    warm = world.step(plan)
    assert same_bits(cold, warm), f"a full cache changes a step by {gap(cold, warm):.1e}"
    assert computed(cache) == numbers, "a trunk ran again"
    assert MEDIA not in cache.feeds or world.num_read == num_read, "an image was read again"
    shown = sum(len(part) for part in plan)
    with_images = sum(bool(world.samples[number][0]) for part in plan for number in part)
    for side, number in numbers.items():
        trunk = cache.feeds[side].cut.kind != "pixels"
        assert number == (0 if not trunk else with_images if side == MEDIA else shown), side
    cache.close()
    cache = world.fed(folder / "mixed")
    world.step([[number for number in part if number % 2 == 0] for part in plan])
    mixed = world.step(plan)
    assert computed(cache) == numbers, "each image and text once"
    assert gap(plain, mixed) <= mixed_by
    cache.close()
    return cuts_of(cache)


@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name, cases in CASES.items() for place in range(len(cases))]
)
def test_a_step_is_the_same(twins: Twins, tmp_path: Path, name: str, place: int) -> None:
    values, cuts = CASES[name][place]
    world = make_world(twins.copy(name), section_of(values), twins.ability(name))
    assert compare(world, tmp_path, mixed_by=STEEP if name in STEEP_ONES else TOLERANCE) == cuts


@pytest.mark.parametrize("row", ROWS)
def test_every_kind_of_adapter_is_fed(twins: Twins, tmp_path: Path, row: str) -> None:
    values = {**ROWS[row], "parts": ["text"] if row == "trainable_tokens" else BOTH}
    values |= {"layers": "last 1"} if "targets" in values else {}
    values |= {"tokens": [65, 66, 67]} if row == "trainable_tokens" else {}
    world = make_world(twins.copy("clip"), section_of(values))
    found = compare(world, tmp_path, mixed_by=TOLERANCE)
    expected = {"head_only": {**BELOW, TEXT: "text below layer 2"}, "trainable_tokens": IMAGES}
    expected |= {"full": {MEDIA: READING}, "layernorm": {MEDIA: READING}}
    assert found == expected.get(row, LAST)


@pytest.mark.parametrize("row", ["lora", "head_only", "ia3", "oft"])
@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_quantized_backbones_are_fed(twins: Twins, tmp_path: Path, row: str, quantize: str) -> None:
    values = {**ROWS[row], "parts": BOTH} | ({"layers": "last 1"} if row != "head_only" else {})
    backbone = twins.copy("clip", quantize)
    assert not problems(section_of(values), backbone.section, backbone.description)
    world = make_world(backbone, section_of(values))
    compare(world, tmp_path, mixed_by=INT8 if quantize == "8bit" else TOLERANCE)


@pytest.mark.parametrize(("name", "row"), NO_TRUNK)
def test_what_leaves_no_trunk_says_why(twins: Twins, tmp_path: Path, name: str, row: str) -> None:
    world = make_world(twins.copy(name), section_of({**ROWS[row], "parts": list(twins.copy(name).traits.parts)[:2]}))
    cache = world.fed(tmp_path)
    assert any(NO_TRUNK[name, row] in line for line in cache.lines), cache.lines
    assert all(feed.cut.kind == "pixels" for feed in cache.feeds.values())


@pytest.mark.parametrize("name", ["clip", "blip vqa", "git", "blip2 (OPT)", "llava"])
def test_weights_of_half_precision_are_fed(twins: Twins, tmp_path: Path, name: str) -> None:
    backbone = twins.copy(name, dtype="bfloat16")
    compare(make_world(backbone, section_of(CASES[name][0][0]), twins.ability(name)), tmp_path, mixed_by=BF16)


@pytest.mark.parametrize("name", ["clip", "git", "llava"])
def test_an_image_that_is_new_every_time_runs_its_trunk_every_time(twins: Twins, tmp_path: Path, name: str) -> None:
    """In one batch with others, whose states are kept."""
    world = make_world(twins.copy(name), section_of(CASES[name][0][0]), twins.ability(name))
    world.changes = {0: AugmentSection(crop=0.5, colour=0.5)}
    plain = world.step(world.plan)
    cache = world.fed(tmp_path)
    assert same_bits(plain, world.step(world.plan))
    numbers, kept = computed(cache), cache.feeds[MEDIA].store.num_entries
    assert gap(plain, world.step(world.plan)) <= TOLERANCE
    passes = 2 if world.ability == "embed" else 1
    assert kept == numbers[MEDIA] - passes, "all but that one, which every pass computes"
    assert computed(cache)[MEDIA] == numbers[MEDIA] + passes
    world.changes = {}
    assert gap(plain, world.step(world.plan)) > 100 * TOLERANCE, "the change is seen"


def test_half_precision_by_autocast_is_fed(twins: Twins, tmp_path: Path) -> None:
    """And what is trained above the cut still gets its gradient."""
    world = make_world(twins.copy("clip"), section_of(HEADS))
    world.autocast, world.precision = partial(torch.autocast, "cpu", torch.bfloat16), "bf16"
    compare(world, tmp_path, mixed_by=BF16)
    in_half = world.step(world.plan)
    assert {"visual_projection.weight", "text_projection.weight"} <= set(in_half[1])
    world.autocast, world.backbone.family = nullcontext, world.plain
    assert gap(world.step(world.plan), in_half) > TOLERANCE, "it computes in another precision"


@pytest.mark.parametrize("name", ["clip", "blip captioning", "llava"])
def test_states_kept_in_fewer_bits_are_used_as_they_are_kept(twins: Twins, tmp_path: Path, name: str) -> None:
    """From the first pass on, so that a run that goes on from a checkpoint finds what it would have computed."""
    values, _ = CASES[name][0]
    world = make_world(twins.copy(name), section_of(values), twins.ability(name))
    plain = world.step(world.plan)
    world.fed(tmp_path, dtype="float16")
    cold, warm = world.step(world.plan), world.step(world.plan)
    assert same_bits(cold, warm)
    assert TOLERANCE < gap(plain, cold) < 0.02, "half precision is seen, and small"


def test_an_input_that_is_there_twice_is_computed_once(twins: Twins, tmp_path: Path) -> None:
    for name in ("clip", "llava"):
        world = make_world(twins.copy(name), section_of(CASES[name][0][0]), twins.ability(name))
        plan = [[0, 3, 0], [3, 0]]
        plain = world.step(plan)
        cache = world.fed(tmp_path / name)
        assert gap(plain, world.step(plan)) <= TOLERANCE
        assert set(computed(cache).values()) == {2}


def test_what_a_worker_did_not_find_yet_is_found_later(twins: Twins, tmp_path: Path) -> None:
    """A batch that was encoded ahead, before another put its states into the store: nothing runs twice."""
    for name in ("clip", "llava", "git"):
        world = make_world(twins.copy(name), section_of(CASES[name][0][0]), twins.ability(name))
        plain = world.step(world.plan)
        cache = world.fed(tmp_path / name)
        ahead = world.batches(world.plan)
        world.step([[number] for part in world.plan for number in part][:3])
        assert gap(plain, world.run(ahead)) <= TOLERANCE
        shown = {number for part in world.plan for number in part}
        texts, images = len(shown), sum(bool(world.samples[number][0]) for number in shown)
        assert computed(cache) == {side: texts if side == TEXT else images for side in cache.feeds}


@pytest.mark.parametrize("name", ["clip", "blip matching", "git", "blip2 (OPT)", "llava", "qwen3_vl", "florence2"])
def test_another_image_is_another_loss(twins: Twins, tmp_path: Path, name: str) -> None:
    """The negation: the states that travel with a batch are what its loss is made of."""
    world = make_world(twins.copy(name), section_of(CASES[name][0][0]), twins.ability(name))
    world.fed(tmp_path)
    right = world.step(world.plan)
    batches = world.batches(world.plan)
    states = batches[0].inputs[states_of(MEDIA)]
    batches[0].inputs[states_of(MEDIA)] = states.flip(0)
    wrong = world.run(batches)
    assert gap(right, wrong) > 100 * TOLERANCE


@pytest.mark.parametrize(
    "name",
    ["blip captioning", "blip vqa", "git", "blip2 (OPT)", "blip2 (T5)", "instructblip (T5)", "llava", "qwen2_vl"],
)
def test_what_is_said_is_the_same(twins: Twins, tmp_path: Path, name: str) -> None:
    world = make_world(twins.copy(name), section_of(CASES[name][0][0]), twins.ability(name))
    world.backbone.model.eval()
    plain = say(world)
    cache = world.fed(tmp_path)
    assert say(world) == plain, "cold"
    numbers = computed(cache)
    assert say(world) == plain, "warm"
    assert computed(cache) == numbers


def say(world: World) -> list[str]:
    """What the model says to the samples' questions."""
    from mmtune.shown_media import ShownMedia, opened

    family, processor, model = world.backbone.family, world.backbone.processor, world.backbone.model
    prompts = []
    for media, turns in world.samples:
        asked = turns[:-1]
        images = [opened(family, ShownMedia(one)) for one in media]
        prompts.append(family.encode_prompt(processor, asked, images))
    batch = family.pad(processor, prompts, side="left")
    with torch.no_grad():
        said: list[str] = family.generate(model, processor, batch, max_new_tokens=4, num_beams=2)
    return said


def test_a_batch_holds_no_pixels_of_what_is_known(twins: Twins, tmp_path: Path) -> None:
    world = make_world(twins.copy("clip"), lora(parts=BOTH, layers="last 1"))
    world.fed(tmp_path)
    (cold,) = world.batches([[0, 1, 2]])
    assert len(cold.inputs["pixel_values"]) == 3 and states_of(MEDIA) not in cold.inputs
    world.run([cold])
    (warm,) = world.batches([[0, 1, 2]])
    assert "pixel_values" not in warm.inputs and warm.inputs[states_of(MEDIA)].shape[0] == 3
    (half,) = world.batches([[3, 0, 4]])
    assert len(half.inputs["pixel_values"]) == 2 and keys_of(MEDIA) in half.inputs
    world.backbone.family = world.plain
    (plain,) = world.batches([[0, 1, 2]])
    assert not set(plain.inputs) & set(OURS)


def test_nothing_is_left_behind_in_the_model(twins: Twins, tmp_path: Path) -> None:
    """Also where a forward pass fails in the middle: the model is as without a cache."""
    world = make_world(twins.copy("clip"), lora(parts=BOTH, layers="last 1"))
    model = world.backbone.model
    before = {name: id(module) for name, module in model.named_modules()}
    keys = list(model.state_dict())
    hooks = [len(module._forward_hooks) for module in model.modules()]
    world.fed(tmp_path)
    world.step(world.plan)
    world.step(world.plan)
    batches = world.batches(world.plan)
    broken: Callable[..., Any] = lambda *_: (_ for _ in ()).throw(RuntimeError("broken"))  # noqa: E731
    handle = model.vision_model.encoder.layers[1].register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="broken"):
        world.run(batches)
    handle.remove()
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert list(model.state_dict()) == keys
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert distance(world.step(world.plan)[1], world.step(world.plan)[1]) == 0
