"""Samples and their tokens as one HTML file: pictures inside it, no scripts, nothing fetched, light and dark."""

import base64
import io
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

from mmtune.sample_views import SampleView, Viewing
from mmtune.token_spans import WORDS, Kind, Stream, Token, visible

if TYPE_CHECKING:
    from PIL.Image import Image

LARGE = 150_000
"""Bytes from which on a picture is written as JPEG: tiles of photographs would make pages of many megabytes."""
QUALITY = 90

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --paper: #f6f8fa; --card: #ffffff; --ink: #24292f; --faint: #57606a; --line: #d0d7de;
  --trained: #b4e7bf; --trained-ink: #0b4f1d; --image: #bfe3f7; --image-ink: #0a4666; --masked: #eff2f5;
  --masked-ink: #57606a; --bad: #a40e26; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper: #0d1117; --card: #161b22; --ink: #e6edf3; --faint: #9198a1; --line: #30363d;
    --trained: #14532d; --trained-ink: #b9f6ca; --image: #0c4a6e; --image-ink: #bae6fd; --masked: #21262d;
    --masked-ink: #9198a1; --bad: #ff7b72; }} }}
body {{ margin: 0 auto; padding: 1.5rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.4rem; margin: 0; }}
h2 {{ font-size: 1rem; margin: 0; overflow-wrap: anywhere; }}
p {{ margin: .3rem 0; }}
.faint {{ color: var(--faint); overflow-wrap: anywhere; }}
article {{ background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem; margin: 1rem 0; }}
.row {{ display: flex; align-items: flex-start; gap: 1.25rem; margin: .6rem 0; }}
.texts {{ flex: 1 1 0; min-width: 0; }}
.pictures {{ flex: 0 0 14rem; line-height: 0; }}
.pictures img {{ width: 100%; height: auto; border: 1px solid var(--line); border-radius: 4px; box-sizing: border-box;
  margin: 0 2px 2px 0; vertical-align: top; }}
.pictures.tiles img {{ width: calc(50% - 3px); }}
.pictures img.small {{ image-rendering: pixelated; }}
.tokens {{ font: 14px/2 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 .6rem; }}
.tokens span, .legend span {{ border-radius: 3px; padding: 2px 0; margin-right: 1px; }}
.legend span {{ padding: 2px 8px; margin-right: 8px; }}
.trained {{ background: var(--trained); color: var(--trained-ink); font-weight: 600; }}
.image {{ background: var(--image); color: var(--image-ink); white-space: nowrap; }}
.masked {{ background: var(--masked); color: var(--masked-ink); }}
.read {{ background: var(--masked); }}
.padding {{ color: var(--faint); text-decoration: line-through; }}
.special {{ font-style: italic; opacity: .85; }}
.target {{ border-left: 4px solid var(--trained); padding-left: .7rem; margin: .3rem 0; white-space: pre-wrap;
  overflow-wrap: anywhere; }}
.target b {{ display: block; color: var(--faint); font-weight: 400; font-size: .85em; }}
.bad td {{ padding: .2rem .8rem .2rem 0; vertical-align: top; overflow-wrap: anywhere; }}
.bad td:last-child {{ color: var(--bad); }}
@media (max-width: 40rem) {{ .row {{ display: block; }} .pictures {{ max-width: 14rem; margin-bottom: .6rem; }} }}
</style>
</head>
"""


def as_page(viewing: Viewing, recipe: Any, split: str) -> str:
    """The whole file.

    Args:
        viewing: what is shown.
        recipe: what it was shown for.
        split: which split the samples are of.
    """
    return "\n".join([HEAD.format(title=safe(f"{recipe.backbone.name}, {split}")), *_body(viewing, recipe, split), ""])


def _body(viewing: Viewing, recipe: Any, split: str) -> Iterator[str]:
    many = f"{len(viewing.samples)} of {viewing.num_items:,} items of split {split}, drawn by seed {recipe.seed}"
    yield f"<body>\n<h1>What {safe(recipe.backbone.name)} meets</h1>"
    yield f'<p class="faint">task {safe(recipe.task.kind)}, data {safe(recipe.data.kind)}; {safe(many)}</p>'
    yield from (f"<p>{safe(line)}</p>" for line in viewing.summary())
    yield f'<p class="legend">{"".join(_legend(kind) for kind in viewing.kinds)}</p>'
    for number, view in enumerate(viewing.samples, start=1):
        yield from _sample(view, number)
    if viewing.bad:
        yield f'<h2>Bad: {len(viewing.bad):,}</h2>\n<table class="bad">'
        for item in viewing.bad:
            yield f"<tr><td>{safe(item.where)}</td><td>{safe(item.reason)}</td></tr>"
        yield "</table>"
    yield "</body>\n</html>"


def _legend(kind: Kind) -> str:
    return f'<span class="{kind}">{safe(WORDS[kind])}</span>'


def _sample(view: SampleView, number: int) -> Iterator[str]:
    yield f"<article>\n<h2>{number}. {safe(view.id)}</h2>"
    yield f'<div class="faint">{safe(view.where)}</div>\n<div class="row">'
    if view.pictures:
        tiles = " tiles" if len(view.pictures) > 1 else ""
        yield f'<div class="pictures{tiles}">{"".join(map(_picture, view.pictures))}</div>'
    yield '<div class="texts">'
    for stream in view.streams:
        yield from _stream(stream, named=len(view.streams) > 1)
    yield from (_target("must come out", judged) for judged in view.judged)
    yield f'</div>\n</div>\n<div class="faint">{safe(view.facts)}</div>\n</article>'


def _stream(stream: Stream, *, named: bool) -> Iterator[str]:
    if named:
        yield f'<p class="faint">{safe(stream.name)}</p>'
    yield f'<p class="tokens">{"".join(map(_token, stream.tokens))}</p>'
    yield from (_target("must be said", target) for target in stream.targets)


def _token(token: Token) -> str:
    mark = " special" if token.is_special else ""
    return f'<span class="{token.kind}{mark}">{escape(token.shown)}</span>'


def _target(what: str, text: str) -> str:
    return f'<div class="target"><b>{what}</b>{safe(text)}</div>'


def _picture(picture: "Image") -> str:
    small = ' class="small"' if max(picture.size) < 128 else ""
    return f'<img{small} alt="the image as the model sees it" src="{as_data(picture)}">'


def as_data(picture: "Image") -> str:
    """A picture as an address that holds it: PNG, or JPEG where that would be large."""
    data, kind = io.BytesIO(), "png"
    picture.save(data, format="PNG")
    if data.tell() > LARGE:
        data, kind = io.BytesIO(), "jpeg"
        picture.save(data, format="JPEG", quality=QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"


def safe(text: str) -> str:
    """Text for a page: nothing in it is markup, and every letter can be seen and stored."""
    return escape(visible(text))
