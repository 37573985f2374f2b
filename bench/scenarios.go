package main

import "slices"

// scenarios are all that there are, in the order in which they are measured.
var scenarios = slices.Concat(queueScenarios, fleetScenarios)

// queueScenarios are those about what one process, or some, can do.
var queueScenarios = []scenario{
	{
		name: "noop", contests: noops,
		what: "How fast does one process work off empty tasks without resources?",
	},
	{
		name: "workers", contests: manyWorkers,
		what: "How fast do many workers of one slot work off empty tasks?",
	},
	{
		name: "dispatch", contests: dispatching,
		what: "How fast are tasks dispatched that nobody runs?",
	},
	{
		name: "resources", contests: withResources,
		what: "What do resources cost?",
	},
	{
		name: "chain", contests: chain,
		what: "How fast do tasks follow each other that all take one resource exclusively?",
	},
	{
		name: "blocked", contests: blocked,
		what: "Do tasks that wait for one resource slow down those that need not?",
	},
	{
		name: "immediate", contests: immediates,
		what: "How many immediate tasks do the processes of an API dispatch and run?",
	},
	{
		name: "lists", contests: lists, columns: listColumns(),
		what: "How long do calls of the REST API take with a million tasks?",
	},
	{
		name: "snapshot", contests: snapshot, columns: append(slices.Clone(standardColumns), own(lastPart)),
		what: "What does an old snapshot cost, which keeps vacuum from all rows that die meanwhile?",
	},
	{
		name: "statements", contests: statements, variants: [2]string{unnamed, named},
		what: "What are named prepared statements worth, where the pooler tracks them?",
	},
	{
		name: "profile", custom: profiles, servers: true, settings: map[string]string{statistics + ".track": "all"},
		what: "Where does a task's time go?",
	},
}
