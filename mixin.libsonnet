// For those who assemble monitoring mixins with jsonnet: the rules of alerts/ and the dashboards of dashboards/, as they are.
//
//   jb install github.com/headroom-exporter/headroom-exporter@main
//   (import 'github.com/headroom-exporter/headroom-exporter/mixin.libsonnet')
//
// There is nothing to configure: rules and dashboards find what they need by labels. What is to be different is laid over the result.
// jsonnet cannot list a folder: the rules come from the one file that is generated from all of them.
local groups = std.flatMap(
  function(object) object.spec.groups,
  std.parseYaml(importstr 'deploy/kustomize/prometheus-operator/rules.yaml')
);

// Rules of a kind, in their groups; no group without any.
local only(kind) = std.filter(
  function(group) std.length(group.rules) > 0,
  [group { rules: std.filter(function(rule) std.objectHas(rule, kind), group.rules) } for group in groups]
);

{
  prometheusAlerts+:: { groups+: only('alert') },
  prometheusRules+:: { groups+: only('record') },
  grafanaDashboards+:: {
    'headroom-apiserver.json': import 'dashboards/apiserver.json',
    'headroom-fleet.json': import 'dashboards/fleet.json',
    'headroom-node.json': import 'dashboards/node.json',
  },
}
