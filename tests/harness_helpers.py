"""lm-evaluation-harness on local files: its own task files, with the data set replaced."""

import logging
from pathlib import Path

import yaml


def official(name):
    """A task file of the installed harness."""
    import lm_eval

    return str(Path(lm_eval.__file__).parent / "tasks" / name)


def run_harness(folder, model, tasks, *, shots=None, limit=None, batch=8):
    """Samples by task: ``tasks`` {name: {"include": official task file, "data_files": {split: path}, …}}."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    folder.mkdir(exist_ok=True)
    for name, task in tasks.items():
        files = {split: str(path) for split, path in task.pop("data_files").items()}
        kind = "csv" if next(iter(files.values())).endswith(".csv") else "json"
        text = {
            "task": name,
            "dataset_path": kind,
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files},
        } | task
        include = text.pop("include")
        own = yaml.safe_dump({key: value for key, value in text.items()}, allow_unicode=True)
        (folder / f"{name}.yaml").write_text(f"include: {include}\n{own}", encoding="utf-8")
    language_model = HFLM(pretrained=str(model), dtype="float32", device="cpu", batch_size=batch)
    return simple_evaluate(
        language_model,
        tasks=list(tasks),
        num_fewshot=shots,
        limit=limit,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True,
        bootstrap_iters=10,
        verbosity="ERROR",
    )
