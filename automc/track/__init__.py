"""Where trials are recorded besides the run's own folder: nowhere (null), or MLflow."""
