"""States and head give the logits of the model's own class, also where it bounds them after its head."""

import pytest
import torch
from adapter_examples import DrawnImage

from mmtune.backbones import load, tiny_folder
from mmtune.backbones._family import Section
from mmtune.ground.records import Turn
from mmtune.losses._label_tokens import select_labels, sum_token_losses
from mmtune.token_states import cap_of, head_of, token_states

ROUNDING = 1e-5
"""float32, in other orders of summation; the losses are near 7."""


@pytest.fixture(scope="module")
def paligemma(tmp_path_factory):
    folder = tiny_folder("chat", tmp_path_factory.mktemp("models") / "paligemma", model_type="paligemma")
    return load(Section(id=str(folder)))


@pytest.mark.parametrize("cap", [None, 1.0, 30.0])
def test_loss_is_the_class_s_own_whatever_the_cap(paligemma, cap):
    model, family, image = paligemma.model, paligemma.family, DrawnImage(0)
    turns = (Turn("user", (image, "caption en")), Turn("assistant", ("a red line",)))
    batch = family.pad(paligemma.processor, [family.encode_turns(paligemma.processor, turns, [image.read()])])
    text = model.config.get_text_config()
    text.final_logit_softcapping = cap
    with torch.no_grad():
        expected = model(**batch).loss
        states, targets = select_labels(token_states(paligemma, batch), batch["labels"], shifted=True)
        loss = sum_token_losses(states, targets, head_of(paligemma)) / len(targets)
        without = sum_token_losses(states, targets, model.lm_head) / len(targets)
    assert abs(loss - expected) < ROUNDING and text.final_logit_softcapping == cap == cap_of(model)
    if cap == 1.0:
        assert abs(without - expected) > 100 * ROUNDING, "the cap is felt"
