"""What a method is made of: the contract, batches, losses, schedules, averages."""
