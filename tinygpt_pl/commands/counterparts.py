"""Options of Lightning's Trainer that fit does not take, each with what to use instead."""

NO_EPOCHS = "training has no epochs: use --trainer.max_steps, which counts optimizer steps."
EVALUATIONS = "use --eval_interval, which counts optimizer steps."

COUNTERPARTS = {
    "max_epochs": NO_EPOCHS,
    "min_epochs": NO_EPOCHS,
    "min_steps": "every run takes --trainer.max_steps steps, unless a signal or a callback stops it.",
    "max_time": "use timeout -s TERM 1h python -m tinygpt_pl fit; --ckpt_path last then resumes the run exactly.",
    "fast_dev_run": "use --trainer.max_steps 1 --data.eval_iters 1 --data.eval_coverage sampled.",
    "overfit_batches": "give a short text by --data.corpus to see a model memorise it.",
    "limit_train_batches": NO_EPOCHS,
    "limit_val_batches": "use --data.eval_iters with --data.eval_coverage sampled.",
    "limit_test_batches": "test scores the whole validation split; --data.val_fraction sets its size.",
    "limit_predict_batches": "there is no command predict; in Python a plain Trainer has it.",
    "val_check_interval": EVALUATIONS,
    "check_val_every_n_epoch": EVALUATIONS,
    "num_sanity_val_steps": "the untrained model is evaluated in full, as iteration 0.",
    "enable_checkpointing": "best.ckpt and last.ckpt are always written; --save_minutes sets how often.",
    "enable_model_summary": "the lines above the table count the parameters.",
    "default_root_dir": "use --run_dir.",
    "gradient_clip_algorithm": "gradients are clipped by their global norm.",
    "inference_mode": "evaluations always run without gradients.",
    "use_distributed_sampler": "the windows of a step are always divided among the devices.",
    "sync_batchnorm": "the model has no batch norm.",
    "reload_dataloaders_every_n_epochs": NO_EPOCHS,
    "barebones": "use --trainer.logger false --trainer.enable_progress_bar false.",
    "model_registry": "use export, which writes a folder for Hugging Face.",
    "enable_autolog_hparams": "each logger always gets the settings.",
}
"""Parameters of `lightning.pytorch.Trainer` that `make_trainer` lacks, and a sentence for each."""
