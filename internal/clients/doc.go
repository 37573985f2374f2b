// Package clients tests the REST API with the clients that people use: Pulp's command line, Pulp's bindings for Python, a
// browser, and schemathesis, which tries whatever the OpenAPI document allows.
//
// It consists of tests. Those that need Python need the environment that `make test-clients` makes; without it they are
// skipped, and so is the browser's where there is none.
package clients
