// Reads objects of the Prometheus operator, one JSON document after the other, into the operator's own types: a field that they do not have, or
// of another type, is an error. Prints what is wrong and ends with 1.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"sigs.k8s.io/yaml"
)

func check(raw json.RawMessage) error {
	var head struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			Name string `json:"name"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return err
	}
	kinds := map[string]any{
		"PodMonitor":     &monitoring.PodMonitor{},
		"ServiceMonitor": &monitoring.ServiceMonitor{},
		"PrometheusRule": &monitoring.PrometheusRule{},
	}
	into, known := kinds[head.Kind]
	if !known || head.APIVersion != "monitoring.coreos.com/v1" {
		return fmt.Errorf("%s %s is none of the operator's", head.APIVersion, head.Kind)
	}
	if err := yaml.UnmarshalStrict(raw, into); err != nil {
		return fmt.Errorf("%s %s: %w", head.Kind, head.Metadata.Name, err)
	}
	return nil
}

func main() {
	documents := json.NewDecoder(os.Stdin)
	read, wrong := 0, 0
	for {
		var raw json.RawMessage
		err := documents.Decode(&raw)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = check(raw)
		}
		read++
		if err != nil {
			wrong++
			fmt.Println(err)
			if raw == nil {
				break
			}
		}
	}
	fmt.Printf("%d objects read, %d wrong\n", read, wrong)
	if wrong > 0 || read == 0 {
		os.Exit(1)
	}
}
