"""From a request and the state of a target to the plan of a launch, without side effects."""
