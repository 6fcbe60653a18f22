"""What settings are called elsewhere, or by habit -> their keys here, for the hint of an error alone.

A key with a dot is meant in that section, one without in any; key=value stands for a value.
"""

_PROMPTS, _MODEL, _OUTPUT, _REWARDS = "data.prompts", "model.path", "output_dir", "rewards"
_GROUP, _SCALE, _SIDE = "rollout.samples_per_prompt", "rollout.guidance_scale", "rollout.height"
_STEPS, _BATCH, _DEVICE = "trainer.max_steps", "trainer.per_device_train_batch_size", "trainer.use_cpu"

HABITS = {
    **dict.fromkeys(["prompts", "prompt_file", "dataset", "datasets", "train_file", "train_data"], _PROMPTS),
    **dict.fromkeys(["data.path", "data.file", "data.train", "data.dataset", "data.name", "data.json_path"], _PROMPTS),
    **dict.fromkeys(["model_name", "model_name_or_path", "pretrained_model_name_or_path", "checkpoint"], _MODEL),
    **dict.fromkeys(["model.name", "model.checkpoint", "model.model_path", "model.id"], _MODEL),
    **dict.fromkeys(["device", "model.device", "trainer.device", "cpu", "no_cuda"], _DEVICE),
    **dict.fromkeys(["precision", "mixed_precision", "dtype", "torch_dtype", "model.precision"], "model.dtype"),
    **dict.fromkeys(["output", "out", "out_dir", "save_dir", "logdir", "run_dir", "output_path"], _OUTPUT),
    **dict.fromkeys(["reward", "reward_fn", "reward_func", "reward_funcs", "reward_model"], _REWARDS),
    **dict.fromkeys(["group_size", "num_generations", "rollout.n", "rollout.samples", "rollout.group"], _GROUP),
    **dict.fromkeys(["cfg", "cfg_scale", "guidance_scale", "rollout.scale"], _SCALE),
    **dict.fromkeys(["decode.cfg", "decode.cfg_scale", "decode.guidance"], "decode.guidance_scale"),
    **dict.fromkeys(["size", "resolution", "image_size", "rollout.image_size"], _SIDE),
    **dict.fromkeys(["steps", "num_steps", "max_train_steps", "iterations", "updates"], _STEPS),
    **dict.fromkeys(["decode.steps", "decode.sampling_steps", "num_inference_steps"], "decode.num_inference_steps"),
    **dict.fromkeys(["evaluate.steps", "evaluate.interval", "eval_steps", "eval_every"], "evaluate.every"),
    **dict.fromkeys(["kl_coef", "kl_coeff", "kl_beta", "kl_weight", "algorithm.kl_penalty"], "algorithm.beta"),
    **dict.fromkeys(["clip", "clip_range", "clip_eps", "cliprange"], "algorithm.epsilon"),
    **dict.fromkeys(["algorithm.name", "algo", "loss_type"], "algorithm.loss"),
    **dict.fromkeys(["batch_size", "train_batch_size"], _BATCH),
    **dict.fromkeys(["lora_rank", "lora_r", "rank", "model.lora.rank", "model.lora.lora_r"], "model.lora.r"),
    **dict.fromkeys(["lora_alpha", "model.lora.lora_alpha"], "model.lora.alpha"),
    **dict.fromkeys(["wandb", "tensorboard", "logger", "log_with"], "trainer.report_to"),
    **dict.fromkeys(["eval", "evaluation", "validation"], "evaluate"),
    **dict.fromkeys(["trainer.optim=adamw", "trainer.optim=adam"], "adamw_torch"),
    **dict.fromkeys(["sampling", "generation"], "rollout"),
    **dict.fromkeys(["decoder", "decoding"], "decode"),
}
