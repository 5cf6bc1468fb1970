"""What is trained and how: settings, jobs, sweeps, fine-tuning."""
