"""Where a run's metrics go besides its own files: TensorBoard, Weights & Biases, MLflow. One file per tracker."""
