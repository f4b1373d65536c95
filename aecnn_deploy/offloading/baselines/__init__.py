"""What the graph policy is compared with: rules, other people's learned methods."""
