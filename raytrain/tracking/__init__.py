"""Sends a run's metrics to TensorBoard, Weights & Biases and MLflow. One file per tracker."""
