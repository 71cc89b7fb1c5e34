"""Reading numbers off deployed artifacts: latency, accuracy, and the machine they were read on."""
