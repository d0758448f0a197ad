//go:build tools

// Package tools pins the commands that benchmarks compare with.
package tools

import (
	_ "github.com/regclient/regclient/cmd/regctl"
)
