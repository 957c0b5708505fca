"""Fields beside those that a form is made of: what they may be, and what they say about being learnt.

Nothing is guessed, both ways. A field is used, or it is known metadata (:data:`METADATA`), or it holds no text of its
own (numbers, booleans, single words such as labels, paths and ids), or its text is in the record's messages already;
any other is refused by name, because an answer may depend on it. ``ignored`` names the fields that the user wants left
out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from pipeline.formats.bad import BadRecord

METADATA = frozenset(
    """
    id _id uid uuid idx index index_id key hash sha conversation_id conv_id dialog_id prompt_id question_id message_id
    parent_id parent_message_id sample_id example_id row_id turn_id turn_identifier conversation_hash
    meta metadata meta_data extra extra_info extras annotations attributes stats generations
    source sources src dataset dataset_name dataset_source subset subset_name split data_source origin provenance file
    path filename file_name url uri link links license licence copyright author authors user_id user_name username
    category categories subcategory domain subdomain subject subjects topic topics subtopic tag tags labels type kind
    task task_type task_name task_id task_category other_task_category task_category_generator class level grade
    difficulty difficulty_generator quality input_quality quality_explanation quality_generator intent skill skills
    language languages lang locale dialect script
    score scores score_chosen score_rejected rating ratings rank ranks margin reward rewards reward_model rm_score
    chosen_score rejected_score chosen_rating rejected_rating chosen_reward rejected_reward chosen_avg_rating
    rejected_avg_rating chosen_model rejected_model chosen_id rejected_id preference_strength confidence
    votes upvotes downvotes likes views annotator annotator_id annotators worker worker_id assignment_id reviewer
    reviewed review_count rank_count emojis
    model model_name model_id generator generated_by teacher_model labelling_model labelling_prompt
    raw_labelling_response gen_input_configs generation_config generation_settings sampling_params status order
    date time timestamp created created_at updated updated_at create_time update_time year version
    state country hashed_ip header headers ip user_agent redacted toxic toxicity detoxify detoxify_moderation
    openai_moderation moderation moderation_results safety is_safe llama_guard llama_guard_2 flagged deleted
    finish_reason stop_reason usage tokens num_tokens token_count n_tokens length num_turns turn turns_count
    avatarurl custom_instruction skip_prompt_formatting original_question original_instruction original_prompt
    synthetic lang_score langdetect name_of_dataset prompt_hash min_neighbor_distance min_similar_uuid similar_count
    parallel_tool_calls tool_choice tool_call_id call_id name recipient channel
""".split()  # noqa: SIM905
)
"""Names that the field's data sets give to what is about a record and not part of it. Lower case."""

BESIDE_TURNS = frozenset({"title", "summary", "description"})
"""Names that are metadata beside a list of turns, but may be part of the question elsewhere."""

BESIDE_PAIRS = frozenset({"rationale", "critique", "feedback", "judge", "judgement", "judgment", "reason"})
"""Names that say why one answer of a pair was preferred, but may be part of an answer elsewhere."""

SWITCHES = ("weight", "train", "training", "loss", "loss_mask", "trainable", "learn")
"""What a turn, or a list beside the turns, is told by to be learnt or not (OpenAI, mistral-finetune, axolotl,
ms-swift, verl)."""

_UNCLEAR = ("mask", "masked", "is_masked", "loss_scale", "loss_weight", "train_detail", "training_detail")
"""What also decides what is learnt, but is not a plain yes or no, or not clear which of both."""

_ANY_SWITCH = frozenset((*SWITCHES, *_UNCLEAR, "weights"))

KTO = ("label", "kto_tag")
"""Whether an answer is a good one (TRL, LLaMA-Factory)."""

_DECIDES = re.compile(r"(?<![a-z])(no)?(loss|train|mask|learn|ignore|supervis)|enable_thinking|chat_template_kwargs")
"""Names of switches: a yes or no under such a name may decide what is learnt, or how it is asked."""

_MEDIA = ("images", "image", "videos", "video", "audios", "audio")


def refuse_unused(
    fields: Mapping[str, Any],
    used: AbstractSet[str],
    said: str,
    *,
    ignored: Collection[str] = (),
    also: Collection[str] = (),
) -> None:
    """Raises BadRecord(unused_field | not_text) when a field is neither used nor known to be no part of the record.

    ``said`` is all text that is used, ``also`` what else is metadata here.
    """
    if fields.keys() <= used:
        return
    for name, value in fields.items():
        if name in used or name in ignored or value is None:
            continue
        plain = str(name).lower()
        if plain in _MEDIA and value:
            raise BadRecord("not_text", f"{name}: only text can be learnt from")
        if plain in METADATA or plain in also:
            continue
        if _DECIDES.search(plain) and _is_switched(value):
            raise BadRecord(
                "unused_field",
                f"{name} = {str(value)[:60]} is not understood, and may decide what is learnt; say weight 0 or 1 in"
                " each turn, or name it in decontaminate.ignore_fields (chats, pairs) or ingest.ignore_fields (texts)",
            )
        text = next((t for t in _texts(value) if _has_words(t) and t.strip() not in said), None)
        if text is not None:
            raise BadRecord(
                "unused_field",
                f"{name}: {text.strip()[:60]!r} is not part of any form known here, and the answer may depend on it;"
                f" rename it (system, context, input …), or name it in decontaminate.ignore_fields"
                f" (chats, pairs) or ingest.ignore_fields (texts)",
            )


def _is_switched(value: object) -> bool:
    """Whether a value is a yes or no, or has one in it."""
    if isinstance(value, dict):
        return any(map(_is_switched, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_is_switched, value))
    return isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))


def _texts(value: object) -> list[str]:
    """Every string in a value, however deep."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, (list, tuple)):
        return [text for inner in value for text in _texts(inner)]
    return []


def _has_words(text: str) -> bool:
    """Whether a string says something: several words, or letters of a script without spaces. A label, a path, an
    identifier does not."""
    text = text.strip()
    return any(c.isspace() for c in text) or (not text.isascii() and len(text) > 8)


def is_given(value: object) -> bool:
    """Whether a cell says anything: not null, not a table's empty string or NaN."""
    return value is not None and value == value and not (isinstance(value, str) and not value.strip())


def learnt(turn: Mapping[str, Any], role: str, ignored: Collection[str] = ()) -> bool:
    """Whether a turn is one to learn: the assistant's, unless a switch says no. Raises BadRecord(turn_weight) for what
    is neither yes nor no."""
    if _ANY_SWITCH.isdisjoint(turn):
        return role == "assistant"
    _refuse_unclear(turn, ignored)
    wanted = {name: switch(turn[name], name) for name in SWITCHES if is_given(turn.get(name)) and name not in ignored}
    if len(set(wanted.values())) > 1:
        raise BadRecord("turn_weight", f"{' and '.join(wanted)} contradict each other")
    given = next(iter(wanted.values()), None)
    if role != "assistant":
        if given:
            raise BadRecord(
                "turn_weight", f"{next(iter(wanted))}: a turn of role {role} cannot be learnt, only answers"
            )
        return False
    return given is not False


def switch(value: object, name: str) -> bool:
    """True or False of a switch's value. Raises BadRecord(turn_weight)."""
    if isinstance(value, str) and value.strip().lower() in ("true", "false", "0", "1"):
        value = value.strip().lower() in ("true", "1")
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    raise BadRecord("turn_weight", f"{name} = {str(value)[:60]}: a turn is learnt or not, 1 or 0")


def turn_switches(record: Mapping[str, Any], turns: int, ignored: Collection[str] = ()) -> list[bool] | None:
    """The switches of a record as one for each of its turns, or None. Raises BadRecord(turn_weight)."""
    if _ANY_SWITCH.isdisjoint(record):
        return None
    for name in (*SWITCHES, "weights"):
        value = record.get(name)
        if not is_given(value) or name in ignored or (name == "loss" and isinstance(value, float)):  # a measured one
            continue
        if isinstance(value, (list, tuple)):
            if len(value) != turns:
                raise BadRecord("turn_weight", f"{name} has {len(value)} values for {turns} turns")
            return [switch(one, name) for one in value]
        if not switch(value, name):
            raise BadRecord("not_to_learn", f"{name} = {value}: the whole record is marked as not to be learnt")
    if str(record.get("mask")).strip().lower() not in ("user", "human"):  # NeMo: whose turns are masked
        _refuse_unclear(record, ignored)
    return None


def _refuse_unclear(fields: Mapping[str, Any], ignored: Collection[str]) -> None:
    for name in _UNCLEAR:
        if is_given(fields.get(name)) and fields[name] != [] and name not in ignored:
            raise BadRecord(
                "turn_weight", f"{name} = {str(fields[name])[:60]} is not understood; say weight 0 or 1 in each turn"
            )


def refuse_disliked(record: Mapping[str, Any], ignored: Collection[str] = ()) -> None:
    """Raises BadRecord(disliked_answer) when a KTO label says that the answer is a bad one."""
    for name in KTO:
        value = record.get(name)
        if name in ignored or not is_given(value):
            continue
        if value is False or value == 0 or str(value).strip().lower() in ("false", "0"):
            raise BadRecord(
                "disliked_answer",
                f"{name} = {value}: an answer not to give; leave such records out of chat data, or put the true and the"
                " false answer of a prompt into one record as chosen and rejected",
            )
