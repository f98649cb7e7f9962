"""A part that was asked for and stays dead stops the run with the reason; a living one does not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import BOTH, KINDS, LORA, backbone_of, inputs_of, loss_of, section

from mmtune.adapter_liveness import JUDGED_AFTER, Liveness
from mmtune.adapters import Adapted, attach, optimizer_groups, set_modes
from mmtune.ground.errors import TrainingError


def watch(adapted: Adapted, loss: Any = loss_of, *, rate: float = 1e-3, steps: int = JUDGED_AFTER) -> list[str]:
    """Train for the first steps as the loop does and give what was said."""
    inputs = inputs_of(adapted.backbone)
    optimizer = torch.optim.AdamW(optimizer_groups(adapted, rate, 0.0))
    liveness = Liveness(adapted)
    said = liveness.start_table().splitlines()
    set_modes(adapted)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss(adapted.backbone, inputs).backward()
        liveness.after_backward()
        optimizer.step()
        liveness.after_step(step, said.append)
    return said


def adapted_fresh(folder: Path, values: dict[str, Any] = LORA, **options: Any) -> Adapted:
    return attach(backbone_of(folder, **options), section(**values))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_living_parts_go_on(request: pytest.FixtureRequest, family: str, name: str) -> None:
    adapted = adapted_fresh(request.getfixturevalue(f"tiny_{family}_folder"), KINDS[name])
    said = watch(adapted)
    count = len(adapted.parts)
    assert len(said) == 2 * (count + 1), "a heading and a row per part, before and after"
    for report, row in zip(adapted.parts, said[count + 2 :], strict=True):
        part, modules, trainable, share, gradient, change, moved = row.split()
        assert (part, modules, trainable) == (report.part, str(report.num_modules), f"{report.num_trainable:,}")
        assert float(share.rstrip("%")) == pytest.approx(100 * report.share, abs=1e-3)
        assert float(gradient) > 0 and float(change) > 0
        assert moved == f"{report.num_modules}/{report.num_modules}"


@pytest.mark.parametrize("values", [LORA, {**LORA, "use_dora": True}])
def test_quantized_parts_are_measured_too(tiny_clip_folder: Path, values: dict[str, Any]) -> None:
    said = watch(adapted_fresh(tiny_clip_folder, values, quantize="4bit"))
    assert [float(row.split()[5]) > 0 for row in said[-3:]] == [True] * 3


def test_the_first_zero_gradient_of_a_is_no_death(tiny_clip_folder: Path) -> None:
    adapted = adapted_fresh(tiny_clip_folder)
    loss_of(adapted.backbone, inputs_of(adapted.backbone)).backward()
    of_a = [value.grad for name, value in adapted.trainable().items() if ".lora_A." in name]
    assert all(gradient is not None and not gradient.any() for gradient in of_a)
    watch(adapted)


def text_detached(backbone: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    image = backbone.family.embed_media(backbone.model, inputs)
    text = backbone.family.embed_text(backbone.model, inputs).detach()
    return -(image * text).sum()


def text_masked(backbone: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    image = backbone.family.embed_media(backbone.model, inputs)
    text = backbone.family.embed_text(backbone.model, inputs)
    return -(image[:, 0]).sum() + (0.0 * text).sum()


@pytest.mark.parametrize("values", [LORA, {"kind": "head_only", "parts": BOTH}, {"kind": "full", "parts": BOTH}])
@pytest.mark.parametrize(("loss", "reason"), [(text_detached, "no gradient reaches it"), (text_masked, "exactly zero")])
def test_a_dead_part_stops_the_run(tiny_clip_folder: Path, values: dict[str, Any], loss: Any, reason: str) -> None:
    with pytest.raises(TrainingError, match=f"part 'text': .*{reason}") as caught:
        watch(adapted_fresh(tiny_clip_folder, values), loss)
    assert "'vision'" not in str(caught.value)
    watch(adapted_fresh(tiny_clip_folder, {**values, "parts": ["vision"]}), loss)  # not asked for: not missed


def test_parts_are_judged_after_the_first_updates_and_not_before(tiny_clip_folder: Path) -> None:
    watch(adapted_fresh(tiny_clip_folder), text_detached, steps=JUDGED_AFTER - 1)


def test_a_hook_that_cuts_a_tower_off_is_found(tiny_clip_folder: Path) -> None:
    adapted = adapted_fresh(tiny_clip_folder)
    adapted.model.visual_projection.register_full_backward_hook(lambda module, gin, gout: tuple(0 * g for g in gin))
    with pytest.raises(TrainingError, match="part 'vision': its gradient is exactly zero"):
        watch(adapted)


@pytest.mark.parametrize("rate", [0.0, 1e-30])
def test_weights_that_do_not_move_are_dead(tiny_clip_folder: Path, rate: float) -> None:
    values = {"kind": "head_only", "parts": BOTH}
    with pytest.raises(TrainingError, match="'vision': gradients arrive .* no effective weight moved") as caught:
        watch(adapted_fresh(tiny_clip_folder, values), rate=rate)
    assert "'text'" in str(caught.value), "all dead parts at once"


def test_a_dead_temperature_is_shown_and_does_not_stop(tiny_clip_folder: Path) -> None:
    said = watch(adapted_fresh(tiny_clip_folder), lambda b, inputs: loss_of(b, inputs) + 0 * b.model.logit_scale)
    assert float(said[-1].split()[4]) > 0

    def unscaled(backbone: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        image = backbone.family.embed_media(backbone.model, inputs)
        return -(image * backbone.family.embed_text(backbone.model, inputs)).sum()

    said = watch(adapted_fresh(tiny_clip_folder), unscaled)
    assert said[-1].split()[0] == "temperature" and said[-1].split()[-1] == "0/1"


def test_steps_that_a_scaler_skips_do_not_count(tiny_clip_folder: Path) -> None:
    adapted = adapted_fresh(tiny_clip_folder)
    liveness = Liveness(adapted)
    value = next(iter(adapted.trainable().values()))
    value.grad = torch.full_like(value, float("inf"))
    liveness.after_backward()
    assert liveness.last_step == JUDGED_AFTER + 1
    liveness.after_step(JUDGED_AFTER)
    assert all(life.change is None and life.gradient_norm == 0 for life in liveness.lives.values())
