"""Whether calibration still holds: drift without labels, tests with labels, SLOs, and the rollout of a calibrator."""
