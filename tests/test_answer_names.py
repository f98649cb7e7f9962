"""Answer metrics by name: records, `evaluate.Metric`s, slips of the pen, and the extra that is not installed."""

import inspect
import sys

import pytest

import mmtune
from mmtune.ground.errors import DataError, RecipeError
from mmtune.metrics import (
    AnswerMetric,
    answer_metrics,
    answer_score,
    answer_score_names,
    higher_is_better,
    records,
    top_of,
)

PREDICTIONS = ["a cat sits on a mat", "Two dogs", "the 3rd answer"]
REFERENCES = [["a cat on the mat", "the cat sits"], ["two dogs", "dogs run"], ["a third answer", "no"]]
ONE_EACH = ["a cat on the mat", "two dogs", "a third answer"]
HEADINGS = ("What:", "Formula:", "Shapes:", "Needs:", "Relatives:", "Source:", "Raises:")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path))


def test_retrieval_and_answers_do_not_mix():
    assert set(records()) == {"recall", "median_rank", "mrr"}
    assert all(isinstance(record, AnswerMetric) for record in answer_metrics().values())
    assert not set(answer_metrics()) & {"recall", "median_rank", "mean_reciprocal_rank"}
    named = "accuracy anls bleu caption_retrieval cer chrf cider cider_d exact_match macro_f1 majority_accuracy "
    named += "mean_class_recall relaxed_accuracy rouge_l token_f1 vqa_accuracy wer"
    assert set(answer_score_names()) == {*named.split(), *(f"coco_bleu@{k}" for k in (1, 2, 3, 4))}


@pytest.mark.parametrize("name", answer_metrics())
def test_a_metric_says_what_it_is(name):
    record = answer_metrics()[name]
    assert record.name == name == record.function.__name__
    text = inspect.getdoc(record.function) or ""
    places = [text.find(f"\n{heading}") for heading in HEADINGS]
    assert -1 not in places and places == sorted(places)


def test_which_way_is_good_and_where_the_scale_ends():
    assert not higher_is_better("wer") and not higher_is_better("cer")
    assert all(higher_is_better(name) for name in answer_score_names() if name not in ("wer", "cer"))
    assert [top_of(name) for name in ("cider_d", "bleu", "coco_bleu@2", "text_to_image_recall@5")] == [10, 100, 1, 1]


@pytest.mark.parametrize("name", answer_score_names())
def test_the_evaluate_metric_computes_what_the_pure_function_computes(name):
    wrapped = mmtune.metric(name)
    expected = answer_score(name).value(PREDICTIONS, REFERENCES)
    assert wrapped.name == name
    assert wrapped.compute(predictions=PREDICTIONS, references=REFERENCES) == {name: expected}
    single = answer_score(name).value(PREDICTIONS, [[text] for text in ONE_EACH])
    assert mmtune.metric(name).compute(predictions=PREDICTIONS, references=ONE_EACH) == {name: single}


def test_lists_of_different_lengths_and_batches():
    references = [["a cat on the mat"], ["two dogs", "dogs run", "two"], ["a third answer", "no"]]
    expected = {"cider_d": answer_score("cider_d").value(PREDICTIONS, references)}
    assert mmtune.metric("cider_d").compute(predictions=PREDICTIONS, references=references) == expected
    slowly = mmtune.metric("cider_d")
    slowly.add_batch(predictions=PREDICTIONS[:1], references=references[:1])
    slowly.add_batch(predictions=PREDICTIONS[1:], references=references[1:])
    assert slowly.compute() == expected
    assert expected != {"cider_d": answer_score("cider_d").value(PREDICTIONS[::-1], references)}


def test_cut_offs():
    given = {"predictions": PREDICTIONS, "references": REFERENCES}
    values = {k: answer_score(f"coco_bleu@{k}").value(PREDICTIONS, REFERENCES) for k in (1, 2, 3, 4)}
    assert len(set(values.values())) == 4
    assert mmtune.metric("coco_bleu").compute(**given) == {"coco_bleu": values[4]}
    assert mmtune.metric("coco_bleu").compute(**given, k=2) == {"coco_bleu": values[2]}
    assert mmtune.metric("coco_bleu@1").compute(**given) == {"coco_bleu@1": values[1]}
    with pytest.raises(ValueError, match="cider has no cut-off, but k=2 was given"):
        mmtune.metric("cider").compute(**given, k=2)
    with pytest.raises(RecipeError, match="coco_bleu@5' is not a score. Did you mean 'coco_bleu"):
        mmtune.metric("coco_bleu").compute(**given, k=5)
    with pytest.raises(ValueError, match="k is the longest n-gram, 1 to 4"):
        answer_metrics()["coco_bleu"].function(PREDICTIONS, REFERENCES, 5)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("cidr", "cider"),
        ("CIDEr", "cider"),
        ("cider-d", "cider_d"),
        ("vqa_acuracy", "vqa_accuracy"),
        ("coco_bleu@5", "coco_bleu@4"),
        ("rouge", "rouge_l"),
        ("exactmatch", "exact_match"),
        ("wer@1", "wer"),
    ],
)
def test_a_slip_names_the_nearest(wrong, right):
    for call in (mmtune.metric, answer_score, higher_is_better):
        with pytest.raises(RecipeError, match=f"{wrong}' is not a score. Did you mean '{right}'.*coco_bleu@1"):
            call(wrong)


def test_what_is_near_to_nothing_lists_the_scores():
    with pytest.raises(RecipeError, match="'xyzzy' is not a score. There are: accuracy, anls"):
        mmtune.metric("xyzzy")
    with pytest.raises(RecipeError, match="text_to_image_recall@1"):
        mmtune.metric("text_to_image_xyzzy")


@pytest.mark.parametrize(
    ("name", "package"), [("wer", "jiwer"), ("cer", "jiwer"), ("bleu", "sacrebleu"), ("chrf", "sacrebleu")]
)
def test_a_missing_package_is_named_with_its_extra(name, package, monkeypatch):
    for module in [m for m in sys.modules if m.split(".")[0] == package] + [package]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"the score {name} needs {package}: pip install 'mmtune\[metrics\]'"):
        answer_score(name).value(PREDICTIONS, REFERENCES)
    assert answer_score("cider").value(PREDICTIONS, REFERENCES) > 0  # the others do without
