"""Words by which a language is told."""

from __future__ import annotations

ENGLISH = (
    "the|and|of|to|that|with|this|you|are|it|for|from|which|have|can|will|not|is|a|in|as|on|be|"
    "or|by|if|an|we|was|has|but|its|your|when"
)
"""Words that make up four tenths of English prose. Other languages share some, never so many."""
