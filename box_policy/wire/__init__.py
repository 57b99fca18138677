"""What bytes say. Pure, incremental parsers that never raise, whatever they are fed."""
