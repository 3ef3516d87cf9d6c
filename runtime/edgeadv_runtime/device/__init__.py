"""What machine this is: processor, GPU, memory, child processes. It measures nothing."""
