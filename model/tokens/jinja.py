"""Chat templates of others, rendered as ``transformers`` renders them: in Jinja's sandbox, since data may not run code.

What ``{% generation %}`` encloses is found again by two characters that the conversation does not hold.
"""

from __future__ import annotations

import functools
import json
from datetime import date
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment, Template
    from jinja2.nodes import CallBlock
    from jinja2.parser import Parser

ANY_DAY = date(2024, 7, 26)
"""The day that a template is told while data is made and models are examined, whose bytes must not depend on it."""


class TemplateRefuses(ValueError):
    """A chat template does not take a conversation, or loses part of it; the text says why."""


@functools.lru_cache(maxsize=16)
def compiled(template: str) -> Template:
    """A template ready to be rendered. Raises TemplateRefuses for what is no template."""
    import jinja2

    try:
        return _environment().from_string(template)
    except jinja2.TemplateError as error:
        raise TemplateRefuses(f"it is not a readable Jinja template: {error}") from None


def render(template: str, values: dict[str, Any], day: date = ANY_DAY, marks: tuple[str, str] = ("", "")) -> str:
    """The text that a template writes; ``marks`` come around what ``{% generation %}`` encloses, ``day`` is the day
    that it is told. Raises TemplateRefuses with the template's own words."""
    import jinja2

    more = {"_marks": marks, "strftime_now": day.strftime}
    try:
        return compiled(template).render(**values, **more)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
        raise TemplateRefuses(str(error) or type(error).__name__) from None


@functools.cache
def _environment() -> Environment:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.runtime import Context, Macro
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks what is trained; its body is written as it is."""

        tags = {"generation"}  # noqa: RUF012 - jinja2's own interface

        def parse(self, parser: Parser) -> CallBlock:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            block = nodes.CallBlock(self.call_method("_marked", [nodes.ContextReference()]), [], [], body)
            return block.set_lineno(line)  # pyright: ignore[reportReturnType] - it gives back itself

        def _marked(self, context: Context, caller: Macro) -> str:
            opened, closed = context.get("_marks") or ("", "")
            return f"{opened}{caller()}{closed}"

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    return environment
