"""A user's own Ray Train trainer around raytrain's loop: `python own_trainer.py CONFIG MIN MAX`."""

import sys

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

import raytrain


def main(config: str, least: str, most: str) -> None:
    """Train; says on its last line how the run ended."""
    ray.init(log_to_driver=False)
    loop = raytrain.ray_train_loop(config)
    trainer = TorchTrainer(
        loop,
        scaling_config=ScalingConfig(
            num_workers=(int(least), int(most)),
            resources_per_worker={"CPU": 2},
            elastic_resize_monitor_interval_s=2.0,
        ),
        run_config=RunConfig(
            name="own",
            storage_path=f"{loop.run_root}/own",
            failure_config=FailureConfig(max_failures=-1),
            callbacks=[raytrain.GracefulResize()],
        ),
    )
    print("ended:", trainer.fit().return_value["status"])


if __name__ == "__main__":
    main(*sys.argv[1:])
