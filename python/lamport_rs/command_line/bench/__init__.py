"""`lamport-rs bench`: every implementation found here, over sizes and world sizes, checked, recorded and drawn."""
