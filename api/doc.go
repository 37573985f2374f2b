// Package api serves Pulp's REST API, version 3, as Pulp's own clients speak it.
//
// What it serves is a list of components. A [Component] has the resources of one plugin: their paths, their models (the
// names in PRNs), and their operations. The core's own resources, tasks and users among them, are a component as well.
// From the Go types of the operations' bodies and replies come the checks of what clients send, the selection of fields,
// and the OpenAPI document: there is no second description that they could differ from.
//
// A body is read whole before the database is asked for what it wants, and a reply is made whole before the first byte of
// it is sent: a slow client holds no connection of the database. Texts of errors are Pulp's, where a client may
// compare them.
//
// Source of the formats and texts: pulpcore 3.117 and Django REST framework, as observed.
package api
