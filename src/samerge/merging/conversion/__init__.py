"""From one form to another: an adapter to a smaller one, a checkpoint or a DoRA to a plain adapter."""
