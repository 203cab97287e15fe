"""The probe: what runs inside the training process."""
