"""From adapters to the merged adapter: align, convert, merge, finish, compare, tune, compress."""
