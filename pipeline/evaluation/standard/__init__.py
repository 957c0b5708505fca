"""The exams that the field reports, read from the files that their authors publish, asked and scored as
lm-evaluation-harness 0.4 does: as plain text, with its prompts.

:mod:`forms` recognises whose exam the files of a source are and cuts them into subjects and splits; :mod:`records`
turns records into documents; :mod:`prompts` makes of each the text that a model reads and the continuations that are
compared, with its few-shot examples. What is of no form here is asked through the chat template, as an own exam
(:mod:`pipeline.evaluation.exams`).
"""
