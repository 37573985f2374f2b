// Package schema holds Pith's migrations, for goose, as files embedded in the binary.
//
// The files are the one truth about the database: sqlc reads them to generate
// package db, and internal/migrate applies them.
package schema

import "embed"

// FS holds the migrations, named NNNNN_what.sql as goose expects.
//
//go:embed *.sql
var FS embed.FS
