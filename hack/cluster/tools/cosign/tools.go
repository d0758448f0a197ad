//go:build tools

// Package tools pins the commands that the tests check signatures with.
package tools

import (
	_ "github.com/sigstore/cosign/v3/cmd/cosign"
)
