"""How one sees the keys of the tasks that end in answers at work."""

from key_effect import Effect, key
from key_worlds_tasks import asked, batched, generated, judged

BASES = {"captioning": "captioned", "vqa": "asked_jsonl", "matching": "labelled_jsonl", "chat": "chats"}
SCORES = "task.scores=[token_f1]"
QUESTIONS = ("data.question=question", "data.answers=answers")
CHATS = "data={kind: conversations, path: FOLDER/chats.jsonl, images: FOLDER/images, split: {test: 30%}}"

EFFECTS: dict[str, Effect] = {
    "task.kind:captioning": key(asked, "captioned", "", "task.kind=matching"),
    "task.kind:matching": key(asked, "matched", "", "task.kind=captioning"),
    "task.kind:retrieval": key(judged, "captioned", "", "task.kind=retrieval"),
    "task.kind:vqa": Effect(judged, "captioned", ["task.kind=vqa", *QUESTIONS], []),
    "task.kind:chat": Effect(judged, "captioned", ["task.kind=chat", CHATS], []),
    "task.prompt:captioning": key(asked, "captioned", "", "task.prompt=what is it"),
    "task.prompt:vqa": key(asked, "asked_jsonl", "", "task.prompt='Q: {question} A:'"),
    "task.prompt:matching": key(asked, "labelled_jsonl", "", "task.prompt='{caption}?'"),
    "task.answers:vqa": key(asked, "asked_jsonl", "", "task.answers=[a, b]"),
    "task.yes:matching": key(asked, "labelled_jsonl", "", "task.yes=right"),
    "task.no:matching": key(asked, "labelled_jsonl", "", "task.no=wrong"),
    "task.system:chat": key(asked, "chats", "", "task.system=Be brief."),
    "train.group_by_length": key(batched, "captioned", "", "train.group_by_length=true"),
}
for task, base in BASES.items():
    EFFECTS[f"task.scores:{task}"] = key(asked, base, "", SCORES)
    EFFECTS[f"task.max_new_tokens:{task}"] = key(generated, base, "", "task.max_new_tokens=7")
    EFFECTS[f"task.num_beams:{task}"] = key(generated, base, "", "task.num_beams=3")
