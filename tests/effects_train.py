"""How one sees the keys of `task`, `train`, `checkpoint` and the top level at work."""

from key_effect import Effect, key
from key_worlds import computed, planned, scheduled, trained, valued

VALIDATED = ("train.evaluate_every=2 steps",)

EFFECTS: dict[str, Effect] = {
    "task.loss.kind:infonce": key(valued, "column", "", "task.loss.kind=sigmoid"),
    "task.loss.kind:sigmoid": key(valued, "column", "task.loss.kind=sigmoid", ""),
    "train.length": key(planned, "column", "", "train.length=2 epochs"),
    "train.batch": key(planned, "column", "", "train.batch=16"),
    "train.micro_batch": key(planned, "column", "", "train.micro_batch=4"),
    "train.learning_rate": key(scheduled, "column", "", "train.learning_rate=0.5"),
    "train.schedule": key(scheduled, "column", "", "train.schedule=linear"),
    "train.warmup": key(scheduled, "column", "", "train.warmup=50%"),
    "train.weight_decay": key(scheduled, "column", "", "train.weight_decay=0.5"),
    "train.betas": key(scheduled, "column", "", "train.betas=[0.5, 0.6]"),
    "train.max_grad_norm": key(trained, "column", "", "train.max_grad_norm=1e-3", "losses"),
    "train.precision": key(computed, "column", "", "train.precision=bf16"),
    "train.workers": key(trained, "column", "", "train.workers=1", "workers"),
    "train.evaluate_every": key(trained, "column", "", VALIDATED[0], "validated"),
    "train.best": key(trained, "column", "", "train.best=image_to_text_mrr", "best", more=VALIDATED),
    "train.log_every": key(trained, "column", "", "train.log_every=2 steps", "logged"),
    "train.trackers": key(trained, "column", "", "train.trackers=[tensorboard]", "trackers"),
    "checkpoint.every": key(trained, "column", "", "checkpoint.every=4 steps", "checkpoints"),
    "checkpoint.keep": key(trained, "column", "", "checkpoint.keep=1", "checkpoints"),
    "output": key(trained, "column", "", "output=FOLDER/elsewhere", "folder"),
    "seed": key(trained, "column", "", "seed=1", "losses"),
}
