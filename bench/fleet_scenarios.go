package main

import "slices"

// fleetScenarios are those about many workers.
var fleetScenarios = []scenario{
	{
		name: "simulate", custom: simulations,
		what: "What would fleets of 1 to 100,000 workers do to a database?",
	},
	{
		name: "check", custom: checks, servers: true,
		what: "Is the simulator right about fleets that can be had here?",
	},
	{
		name: "pickup", contests: pickups, columns: pickupColumns,
		what: "How soon does an idle worker begin a task, however many there are?",
	},
	{
		name: "wakeup", contests: wakeups, columns: []column{own(longestWakeup)},
		what: "How soon is the first task after a silence begun?",
	},
	{
		name: "idle", contests: idles, columns: idleColumns,
		what: "What do workers cost that have nothing to do?",
	},
	{
		name: "scaleup", contests: scaleups, columns: scaleupColumns,
		what: "What does a fleet send that grows within seconds?",
	},
	{
		name: "mixed", contests: mixed, columns: mixedColumns,
		what: "Does a fleet keep up with a day of tasks as a busy service has them?",
	},
	{
		name: "fleet", contests: costs, columns: append(slices.Clone(standardColumns), own(missed)),
		what: "Does a task cost the database more the more workers there are?",
	},
}
