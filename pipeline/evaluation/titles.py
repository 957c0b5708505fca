"""What the standard exams are called."""

FORMS = ("ceval", "cmmlu", "mmlu", "arc", "hellaswag", "piqa", "openbookqa", "gsm8k", "blimp")
TITLES = {
    "ceval": "C-Eval", "cmmlu": "CMMLU", "mmlu": "MMLU", "arc": "ARC", "hellaswag": "HellaSwag", "piqa": "PIQA",
    "openbookqa": "OpenBookQA", "gsm8k": "GSM8K", "blimp": "BLiMP",
}  # fmt: skip
