"""Words of other trainers and of everyday speech that people type first, and what they mean here. For hints only."""

OTHER_WORDS = {
    "lr": "training.optimizer.learning_rate",
    "wd": "training.optimizer.weight_decay",
    "eps": "training.optimizer.epsilon",
    "adam_beta1": "training.optimizer.beta1",
    "adam_beta2": "training.optimizer.beta2",
    "adam_epsilon": "training.optimizer.epsilon",
    "lr_scheduler": "training.schedule.kind",
    "lr_scheduler_type": "training.schedule.kind",
    "scheduler": "training.schedule.kind",
    "warmup": "training.schedule.warmup_ratio",
    "clip": "training.gradient_clipping",
    "grad_clip": "training.gradient_clipping",
    "max_grad_norm": "training.gradient_clipping",
    "num_epochs": "training.epochs",
    "num_train_epochs": "training.epochs",
    "steps": "training.max_steps",
    "bs": "training.global_batch_size",
    "batch_size": "training.global_batch_size",
    "train_batch_size": "training.global_batch_size",
    "per_device_train_batch_size": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.global_batch_size",
    "fp16": "training.precision",
    "bf16": "training.precision",
    "eval_steps": "training.eval_every_steps",
    "metric_for_best_model": "training.best_metric",
    "save_steps": "checkpoint.save_every_steps",
    "save_total_limit": "checkpoint.keep_last",
    "max_len": "data.max_length",
    "seq_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "train_file": "data.train.path",
    "validation_file": "data.validation.path",
    "test_file": "data.test.path",
    "model_name": "model.path",
    "model_name_or_path": "model.path",
    "tokenizer_name": "model.tokenizer",
    "output_dir": "storage_path",
    "run_name": "name",
    "report_to": "tracking",
    "gpus": "workers.max",
    "num_gpus": "workers.max",
    "devices": "workers.max",
    "num_workers": "workers.max",
    "world_size": "workers.max",
    "nproc_per_node": "workers.max",
    "output": "storage_path",
    "output_path": "storage_path",
    "save_dir": "storage_path",
    "trackers": "tracking",
    "loggers": "tracking",
    "val": "data.validation",
    "valid": "data.validation",
    "dev": "data.validation",
    "eval": "data.validation",
}
"""A name -> the field."""

OTHER_NAMES = {
    "file": "path",
    "files": "path",
    "filename": "path",
    "folder": "path",
    "name": "path",
    "num": "max",
    "count": "max",
    "number": "max",
}
"""The last part of a name -> that of a field in the same section."""

OTHER_VALUES = {
    "kind": {
        **dict.fromkeys(
            ("classification", "text_classification", "sentiment", "sentiment_analysis", "multi_label", "multilabel"),
            "sequence_classification",
        ),
        **dict.fromkeys(
            ("ner", "named_entity_recognition", "tagging", "pos", "pos_tagging", "chunking", "sequence_labeling"),
            "token_classification",
        ),
        **dict.fromkeys(("custom", "own", "regression"), "python"),
        **dict.fromkeys(("cosine_with_restarts", "cosine_annealing"), "cosine"),
        **dict.fromkeys(("none", "constant_with_warmup"), "constant"),
    },
    "precision": {
        **dict.fromkeys(("float16", "half", "16", "16-mixed"), "fp16"),
        **dict.fromkeys(("bfloat16", "bf16-mixed"), "bf16"),
        **dict.fromkeys(("float32", "float", "full", "single", "32", "32-true"), "fp32"),
        "mixed": "auto",
    },
    "bad_rows": {
        **dict.fromkeys(("skip", "drop", "ignore", "remove"), "set_aside"),
        **dict.fromkeys(("error", "fail", "raise", "stop", "abort", "strict"), "refuse"),
    },
    "format": {"pq": "parquet", "ndjson": "jsonl", "text": "txt", "tab": "tsv", "ner": "conll"},
    "mode": {"dryrun": "offline", "maximize": "max", "minimize": "min", "higher": "max", "lower": "min"},
}
"""The last part of a field's name -> word -> the value that it means, where the field allows that."""

VALUE_OF_SECTION = {
    "model": "model.path",
    "task": "task.kind",
    "data": "data.train.path",
    "data.train": "data.train.path",
    "data.validation": "data.validation.path",
    "data.test": "data.test.path",
    "training.schedule": "training.schedule.kind",
    "training.early_stopping": "training.early_stopping.metric",
    "workers": "workers.max",
    "ray": "ray.address",
}
"""A section -> the field that a single value in its place is probably meant for."""
