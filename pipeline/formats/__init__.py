"""Every record form that the field's projects use, recognised without a flag and brought to one normal form each.

A record is a parsed JSON value (or a table row as a dict). It is one of three kinds:

* ``text``: ``{"text": …}`` or another of the configured text fields;
* ``chat``: normal form ``{"messages": [{"role", "content"}, …]}`` with the roles system, user, assistant and tool,
  and ``"learn": False`` in answers that are context only;
* ``preference``: normal form ``{"prompt": [messages], "chosen": str, "rejected": str}``.

Whatever cannot be brought there raises :class:`BadRecord` with a reason that is counted and reported; nothing is
guessed, and a field that an answer may depend on is used or refused by name (:mod:`pipeline.formats.fields`).
"""
