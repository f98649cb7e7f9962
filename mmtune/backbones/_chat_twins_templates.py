"""Chat templates of tiny chat models, in the shape of the published ones: what stands before, between and after turns.

A message is ``{"role": ..., "content": [{"type": "image"} | {"type": "text", "text": ...}, ...]}``.
"""

LLAVA = """\
{%- for message in messages -%}
{%- if message.role != 'system' -%}{{ message.role.upper() + ': ' }}{%- endif -%}
{%- for piece in message.content if piece.type == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for piece in message.content if piece.type == 'text' -%}{{ piece.text + ' ' }}{%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""
"""LLaVA-1.5's: images before the text, a space after it, and no end of turn: that is for who trains to add."""

QWEN2_VL = """\
{%- for message in messages -%}
{%- if loop.first and message.role != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}
{%- for piece in message.content -%}
{%- if piece.type == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- else -%}{{ piece.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
"""ChatML, with a system turn where the conversation has none."""

IDEFICS3 = """\
{{- '<|begin_of_text|>' -}}
{%- for message in messages -%}
{{ message.role.capitalize() }}{{ ':' if message.content[0].type == 'image' else ': ' }}
{%- for piece in message.content -%}
{%- if piece.type == 'image' -%}{{ '<image>' }}{%- else -%}{{ piece.text }}{%- endif -%}
{%- endfor -%}
{{ '<end_of_utterance>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""
"""Idefics 3's: the space after the colon belongs to a turn that begins with text, and not to the prompt."""

LLAVA_NEXT = """\
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ '[INST] ' }}{%- endif -%}
{%- if message.role == 'system' -%}{{ '<<SYS>>\\n' }}{%- endif -%}
{%- for piece in message.content if piece.type == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for piece in message.content if piece.type == 'text' -%}
{{ (' ' if message.role == 'assistant' else '') + piece.text }}
{%- endfor -%}
{%- if message.role == 'user' -%}{{ ' [/INST]' }}
{%- elif message.role == 'system' -%}{{ '\\n<</SYS>>\\n\\n' }}
{%- else -%}{{ '<\\s> ' }}{%- endif -%}
{%- endfor -%}
"""
"""LLaVA-NeXT's with Mistral: nothing asks for an answer but the end of the instruction. The end of an answer is a slip
of the published one, which no token stands for."""

LLAVA_ONEVISION = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + ' ' }}
{%- for piece in message.content if piece.type == 'image' -%}{{ '<image>' }}{%- endfor -%}
{%- for piece in message.content if piece.type == 'text' -%}{{ '\\n' + piece.text }}{%- endfor -%}
{{ '<|im_end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
"""LLaVA-OneVision's: an assistant turn begins with ``assistant`` and a space, what asks for one has no space."""

QWEN3_VL = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}
{%- for piece in message.content -%}
{%- if piece.type == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- else -%}{{ piece.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
"""ChatML; no system turn but the conversation's own."""

SMOLVLM = IDEFICS3.replace("<|begin_of_text|>", "<|im_start|>")

GEMMA3 = """\
{{- bos_token -}}
{%- set system = namespace(text='') -%}
{%- if messages[0].role == 'system' -%}
{%- set system.text = messages[0].content[0].text + '\\n\\n' -%}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif -%}
{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
{{- system.text if loop.first else '' -}}
{%- for piece in message.content -%}
{%- if piece.type == 'image' -%}{{ '<start_of_image>' }}{%- else -%}{{ piece.text | trim }}{%- endif -%}
{%- endfor -%}
{{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""
"""Gemma 3's: the assistant is called model, a system turn opens the first user turn, texts are trimmed."""

INTERNVL = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- for piece in message.content -%}
{%- if piece.type == 'image' -%}{{ '<IMG_CONTEXT>\\n' }}{%- else -%}{{ piece.text }}{%- endif -%}
{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
"""ChatML with a line of its own for every image."""
