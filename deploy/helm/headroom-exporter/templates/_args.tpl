{{/* The command line: what the chart says itself, then `flags`, then `extraArgs`; of a flag that takes one value the last wins. */}}
{{- define "headroom.args" -}}
- --path.rootfs=/host/root
- --path.sysfs=/host/sys
- --node-name=$(NODE_NAME)
- {{ printf "--web.listen-address=%s:%d" .Values.web.host (int .Values.web.port) | quote }}
{{- if include "headroom.webSecret" . }}
- --web.config.file=/etc/headroom-exporter/web/web.yml
{{- end }}
{{- if .Values.web.kubernetesAuth }}
- --web.kubernetes-auth
{{- end }}
{{- if not .Values.runtime.enabled }}
- --no-runtime
{{- end }}
{{- with .Values.runtime.endpoint }}
- {{ printf "--runtime.endpoint=%s" . | quote }}
{{- end }}
{{- if not .Values.apiserver.enabled }}
- --apiserver.url=off
- --kubelet.url=off
{{- end }}
{{- if .Values.apiserver.probeKubelet }}
- --apiserver.probe-kubelet
{{- end }}
{{- range $name, $value := .Values.flags }}
{{- if kindIs "bool" $value }}
{{- if $value }}
- {{ printf "--%s" $name }}
{{- else if and (hasPrefix "collector." $name) (eq (len (splitList "." $name)) 2) (ne $name "collector.disable-defaults") }}
- {{ printf "--no-%s" $name }}
{{- end }}
{{- else if kindIs "slice" $value }}
{{- range $value }}
- {{ printf "--%s=%s" $name (toString .) | quote }}
{{- end }}
{{- else if kindIs "float64" $value }}
{{/* YAML's numbers come as floats: 100000 must not become 1e+05. */}}
- {{ printf "--%s=%s" $name (ternary (printf "%d" (int64 $value)) (toString $value) (eq (floor $value) $value)) | quote }}
{{- else }}
- {{ printf "--%s=%s" $name (toString $value) | quote }}
{{- end }}
{{- end }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{- define "headroom.appArmorField" -}}
{{- if hasPrefix "Localhost/" . -}}
type: Localhost
localhostProfile: {{ trimPrefix "Localhost/" . }}
{{- else -}}
type: {{ . }}
{{- end }}
{{- end }}

{{/* Before Kubernetes 1.30. */}}
{{- define "headroom.appArmorAnnotation" -}}
{{- if hasPrefix "Localhost/" . -}}
localhost/{{ trimPrefix "Localhost/" . }}
{{- else -}}
{{- ternary "unconfined" "runtime/default" (eq . "Unconfined") }}
{{- end }}
{{- end }}
