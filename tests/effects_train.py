"""How one sees the keys of `task`, `train`, `checkpoint` and the top level at work."""

from key_effect import Effect, key
from key_worlds import computed, planned, scheduled, trained, valued
from key_worlds_train import averaged, recomputed, stopped

VALIDATED = ("train.evaluate_every=2 steps",)

EFFECTS: dict[str, Effect] = {
    "task.loss.kind:infonce": key(valued, "column", "", "task.loss.kind=sigmoid"),
    "task.loss.kind:sigmoid": key(valued, "column", "task.loss.kind=sigmoid", ""),
    "train.length": key(planned, "column", "", "train.length=2 epochs"),
    "train.batch": key(planned, "column", "", "train.batch=16"),
    "train.micro_batch": key(planned, "column", "", "train.micro_batch=4"),
    "train.learning_rate": key(scheduled, "column", "", "train.learning_rate=0.5"),
    "train.layer_decay": key(scheduled, "column", "", "train.layer_decay=0.5"),
    "train.optimizer": key(scheduled, "column", "", "train.optimizer=adamw_8bit"),
    "train.early_stopping.patience": key(
        stopped, "column", "train.early_stopping={patience: 1}", "train.early_stopping={patience: 2}", more=VALIDATED
    ),
    "train.early_stopping.min_delta": key(
        stopped, "column", "train.early_stopping={}", "train.early_stopping={min_delta: 0.1}", more=VALIDATED
    ),
    "train.ema.decay": key(
        averaged, "column", "train.ema={decay: 0.5, warmup: false}", "train.ema={decay: 0.9, warmup: false}"
    ),
    "train.ema.warmup": key(averaged, "column", "train.ema={decay: 0.9, warmup: false}", "train.ema={decay: 0.9}"),
    "train.activation_checkpointing": key(recomputed, "column", "", "train.activation_checkpointing=true"),
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
