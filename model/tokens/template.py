"""The chat format: ChatML turns with tools, calls and reasoning, as a template for ``transformers`` and as text.

:data:`CHAT_TEMPLATE` (Jinja, the dialect of ``transformers``) writes structured messages; :func:`turns` writes messages
of the normal form, in which calls and reasoning are in the contents already. Both give the same text. The template
marks with ``{% generation %}`` exactly what a model is trained on. Contents are trimmed, and earlier answers keep their
reasoning, so that a generation prompt is always a prefix of what was trained. Tools follow Hermes' and Qwen3's
convention: ``<tools>`` in the system turn, ``<tool_call>``, ``<tool_response>`` in a turn of the user, and an answer
that begins with an empty ``<think>`` block under ``enable_thinking=False``.
"""

from __future__ import annotations

import re

from model.tokens.turns import NO_THOUGHT, TOOLS_INTRO

CHAT_TEMPLATE = (
    r"""{%- macro text(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content -%}
{%- for part in content -%}
{%- if part is string -%}{{ part }}
{%- elif part.text is string -%}{{ part.text }}
{%- else -%}{{ raise_exception('only text can be said in this format') }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(lead='', body='') -%}
{%- set rest = messages -%}
{%- if messages and messages[0].role in ('system', 'developer') -%}
{%- set ns.lead = text(messages[0].content) | trim -%}
{%- set rest = messages[1:] -%}
{%- endif -%}
{%- if tools -%}
{%- set ns.lead = ns.lead + ('\n\n' if ns.lead else '') + '"""
    + TOOLS_INTRO
    + r"""\n<tools>' -%}
{%- for tool in tools -%}{%- set ns.lead = ns.lead + '\n' + (tool | tojson) -%}{%- endfor -%}
{%- set ns.lead = ns.lead + '\n</tools>' -%}
{%- endif -%}
{%- if ns.lead -%}{{ '<|im_start|>system\n' + ns.lead + '<|im_end|>\n' }}{%- endif -%}
{%- for message in rest -%}
{%- if message.role in ('tool', 'function') -%}
{%- if loop.first or rest[loop.index0 - 1].role not in ('tool', 'function') -%}{{ '<|im_start|>user' }}{%- endif -%}
{{ '\n<tool_response>\n' + text(message.content) + '\n</tool_response>' }}
{%- if loop.last or rest[loop.index0 + 1].role not in ('tool', 'function') -%}{{ '<|im_end|>\n' }}{%- endif -%}
{%- elif message.role == 'assistant' -%}
{%- set ns.body = text(message.content) | trim -%}
{%- set calls = message.tool_calls or ([message.function_call] if message.function_call else []) -%}
{%- for call in calls -%}
{%- set call = call.function or call -%}
{%- if call.arguments is string and call.arguments | trim -%}
{%- set arguments = call.arguments -%}
{%- else -%}
{%- set arguments = (call.arguments or {}) | tojson -%}
{%- endif -%}
{%- set ns.body = ns.body + ('\n' if ns.body else '') + '<tool_call>\n{"name": ' + (call.name | tojson)
    + ', "arguments": ' + arguments + '}\n</tool_call>' -%}
{%- endfor -%}
{%- set why = text(message.reasoning_content or message.reasoning or message.thinking) | trim -%}
{%- if why -%}{%- set ns.body = '<think>\n' + why + '\n</think>\n\n' + ns.body -%}{%- endif -%}
{{ '<|im_start|>assistant\n' }}
{%- generation -%}{{ ns.body | trim + '<|im_end|>' }}{%- endgeneration -%}
{{ '\n' }}
{%- else -%}
{%- set ns.body = text(message.content) | trim -%}
{%- set role = 'system' if message.role == 'developer' else message.role -%}
{%- if ns.body or role != 'system' -%}{{ '<|im_start|>' + role + '\n' + ns.body + '<|im_end|>\n' }}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking -%}{{ '"""
    + NO_THOUGHT.replace("\n", r"\n")
    + r"""' }}{%- endif -%}
{%- endif -%}"""
)
_GENERATION = re.compile(r"\{%-? *(?:end)?generation *-?%\}")


def plain_template(template: str) -> str:
    """A template without the marks of what is trained, for engines whose Jinja does not know them."""
    return _GENERATION.sub("{#- -#}", template)
